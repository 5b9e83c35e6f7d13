"""Which layers each node serves."""


def even_split(layers: int, nodes: int) -> list[tuple[int, int]]:
    """Contiguous spans that cover ``[0, layers)``, as equal as can be; the first ones longer.

    Raises:
        ValueError: fewer layers than nodes, or no node.
    """
    if not 1 <= nodes <= layers:
        raise ValueError(f"{layers} layers can be split over 1 to {layers} nodes, not {nodes}.")
    size, longer = divmod(layers, nodes)
    spans, start = [], 0
    for node in range(nodes):
        end = start + size + (node < longer)
        spans.append((start, end))
        start = end
    return spans
