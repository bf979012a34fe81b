"""Tables that README can take as they are."""


def markdown(headings, rows):
    lines = ["| " + " | ".join(headings) + " |", "|" + "|".join("---" if i == 0 else "---:" for i in range(len(headings))) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def seconds(value):
    return "" if value is None else f"{value:.1f} s" if value >= 10 else f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.1f} ms"


def mib(value):
    return f"{value / 2**20:.0f} MiB" if value >= 2**20 * 10 else f"{value / 2**20:.1f} MiB"


def speed(results):
    headings = ["scenario", "pods", "ours", "pods/s", "memory", "peer", "pods/s", "memory", "solving alone", "faster", "leaner"]
    rows = []
    for r in results:
        us, peer = r.ours, r.peer
        row = [r.name, str(r.pods), seconds(us.seconds), f"{r.pods / us.seconds:,.0f}", mib(us.peak)]
        if peer:
            slow = "> " if peer.timed_out else ""
            row += [slow + seconds(peer.seconds), f"{r.pods / peer.seconds:,.0f}", mib(peer.peak), mib(peer.solving),
                    f"{slow}{peer.seconds / us.seconds:.0f} x", f"{peer.peak / us.peak:.1f} x"]
        else:
            row += ["not run"] + [""] * 5
        rows.append(row)
    return markdown(headings, rows)


def quality(results):
    headings = ["scenario", "nodes", "$/h", "unschedulable", "peer: nodes", "$/h", "unschedulable", "ours to peer",
                "lower bound $/h", "ours over it", "peer over it"]
    over = lambda price, bound: f"{(price / bound - 1) * 100:+.1f} %" if bound else ""
    rows = []
    for r in results:
        us, peer = r.ours, r.peer
        row = [r.name, str(us.nodes), f"{us.price:.3f}", str(us.unschedulable)]
        if peer and not peer.timed_out:
            row += [str(peer.nodes), f"{peer.price:.3f}", str(peer.unschedulable), over(us.price, peer.price)]
        else:
            row += ["not finished" if peer else "not run", "", "", ""]
        row += [f"{r.bound:.3f}" if r.bound else "", over(us.price, r.bound)]
        row.append(over(peer.price, r.peer_bound) if peer and not peer.timed_out else "")
        rows.append(row)
    return markdown(headings, rows)
