"""Packages: what is uploaded to Lambda, made from a bundle: zip files, a layer, or one image."""
