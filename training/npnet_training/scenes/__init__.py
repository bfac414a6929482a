"""A second text-to-image world, whose model errs in placement, binding and counting."""
