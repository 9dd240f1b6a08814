"""The network and DEC's maths: torch only, no Ray, so that they can be tested anywhere.

Shape letters in names: B batch, F features, D embedding, K clusters.
"""
