"""Write the texts anew."""

from npnet_training.help import MODULES, file_of, render

for name in MODULES:
    file_of(name).write_text(render(name), encoding="utf-8")
    print(file_of(name))
