"""The weights of the models that come with Limner, a folder for each: `limner-erase` with `network.onnx`, and
`limner-sketch`, which is a diffusers folder. `manifest.json` has the sha256 and the size of every file;
`limner.engine.shipped` reads it.

Data alone. The recipes in `training/` make these files, and `python -m training.manifest` writes the manifest.
"""
