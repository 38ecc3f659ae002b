"""The reference zoo: small architectures, their data and their trained weights.

Everything here is reached by a `module:attr` string, as a user's own model would be:
`edgepress_models.resnet8:pretrained`, `edgepress_models.fashion_mnist:load`.
"""
