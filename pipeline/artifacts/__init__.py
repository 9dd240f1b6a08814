"""What stages leave for one another: frozen, typed, and fingerprinted by their content.

An artifact is a small JSON document. Anything large is a file beside it that the document names
together with its digest, so that an artifact's fingerprint covers the bytes of its files.
"""
