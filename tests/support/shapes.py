"""A build of the shapes model that takes seconds."""

SMALL = {"autoencoder_steps": 3, "decoder_steps": 2, "text_steps": 3, "unet_steps": 4, "weak": 2} | {
    "save_every": 2, "look_every": 2, "scenes": 64, "judged": 1,
}  # fmt: skip
