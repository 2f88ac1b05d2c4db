"""How long the backward pass of our layers takes beside the forward pass: as a caller sees it, in the kernels alone, and in torch alone."""

from __future__ import annotations

from benchmarks.peers import LANES, OURS

FLOOR = "torch, a function that does nothing backward"
SHARE = 0.15  # asked of backward over forward


def way_of(layer):
    """The kernels' whole call behind one of our layers, which has a clock; None where there is none."""
    bound = getattr(getattr(layer, "call", None), "_bound", None)
    return None if bound is None or bound.quick is None else getattr(bound.quick, "way", None)


def backward_page(results, batches):
    """Lines of a table of backward over forward."""
    out = [
        "",
        "### The backward pass",
        "",
        f"Backward over forward, with solver='lanes' / as chosen; {SHARE} is asked. First as the caller of the layer sees it, in the",
        "rounds above; then the kernels' own time, by their clock, in the same rounds. The last columns are milliseconds of the layer as",
        "chosen: the backward pass, and in brackets that of an autograd function of the same inputs and outputs which does nothing but",
        "allocate gradients, after the same forward pass, so that the caches are as cold: what of it is torch's own.",
        "",
    ]
    head = ["problem", *(f"layer, batch {b}" for b in batches), *(f"kernels, batch {b}" for b in batches)]
    head += [f"backward (torch alone), batch {b}" for b in batches]
    out += ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for name, r in results.items():
        cells = [name]
        for times in (r["times"], r["own"]):
            for b in batches:
                t = times.get(b, {})
                cells.append(" / ".join(f"{t[k][1] / t[k][0]:.2f}" for k in (LANES, OURS) if k in t))
        for b in batches:
            t = r["times"].get(b, {})
            cells.append(f"{t[OURS][1]:.2f} ({t[FLOOR][1]:.2f})" if OURS in t and FLOOR in t else "")
        out.append("| " + " | ".join(cells) + " |")
    return out
