"""Operations on a lake: compare, locate, forget, collect garbage."""
