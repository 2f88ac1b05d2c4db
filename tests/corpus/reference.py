"""Makes the references: solutions at 1e-12, and directional derivatives by Richardson central differences with an error estimate.

Run `python -m tests.corpus.reference small out.npz` (or medium) from the repository root. With names behind it, `out.npz` must exist, and
solutions and derivatives of these cases are made anew at their stored points, by SCS at 1e-11: for cases where Clarabel stops as
"optimal_inaccurate" at 1e-12 (medium: geo_mean_polytope, off by 2e-6 in x, and grasp_force, off by 7e-5 in the derivative; SCS at 1e-11
and ECOS at 1e-12 agree with each other there to 2e-11 and 6e-8).
"""

import json
import sys
import time
import warnings

import cvxpy as cp
import numpy as np

from tests.corpus.case import direction_like
from tests.corpus.problems import REG

SCS = dict(solver=cp.SCS, eps_abs=1e-11, eps_rel=1e-11, max_iters=1_000_000)
TIGHT = dict(tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12, tol_infeas_abs=1e-12, tol_infeas_rel=1e-12, max_iter=300)
K_DIR, K_COT, N_POINTS = 6, 3, 3


def solve(case, theta, extra=None, settings=None):
    for p, v in zip(case.parameters, theta, strict=True):
        # FD points of symmetric parameters are symmetric already
        p.value = v
    prob = case.problem if extra is None else extra
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prob.solve(gp=case.gp, **(settings or dict(solver=cp.CLARABEL, **TIGHT)))
    if prob.status not in ("optimal", "optimal_inaccurate"):
        raise RuntimeError(prob.status)
    return [np.array(v.value, dtype=float) for v in case.variables], prob.status, float(prob.value)


def unique_gap(case, theta, rng):
    """How far the solution moves under a 1e-5 random tilt of the objective (large => not unique / not smooth)."""
    obj = case.problem.objective
    eps = 1e-5
    sols = []
    tilt = [rng.standard_normal(v.shape) for v in case.variables]
    for sgn in (1, -1):
        if case.gp:
            t = 1.0
            for v, w in zip(case.variables, tilt, strict=True):
                for i in range(v.size):
                    e = v if v.shape == () else v.flatten(order="F")[i]
                    t = t * e ** float(sgn * eps * np.ravel(w, order="F")[i])
            new = type(obj)(obj.args[0] * t)
        else:
            new = type(obj)(obj.args[0] + sgn * eps * sum(cp.sum(cp.multiply(w, v)) for v, w in zip(case.variables, tilt, strict=True)))
        sols.append(solve(case, theta, cp.Problem(new, case.problem.constraints))[0])
    num = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(*sols, strict=True)))
    den = max(1e-3, np.sqrt(sum(np.sum(a**2) for a in sols[0])))
    return num / den


def reference_point(case, theta, rng):
    x0, status, val = solve(case, theta)
    cot = [[rng.standard_normal(x.shape) for x in x0] for _ in range(K_COT)]
    dirs = [[direction_like(rng, p, np.asarray(v)) for p, v in zip(case.parameters, theta, strict=True)] for _ in range(K_DIR)]
    return x0, cot, dirs, differences(case, theta, x0, cot, dirs), status, val


def differences(case, theta, x0, cot, dirs, settings=None):
    """(relative error estimate, step, G, kink) of the step with the smallest estimate."""

    def L(theta_):
        xs, _, _ = solve(case, theta_, settings=settings)
        return np.array([sum(np.sum(w * x) for w, x in zip(ws, xs, strict=True)) for ws in cot])

    L0 = np.array([sum(np.sum(w * x) for w, x in zip(ws, x0, strict=True)) for ws in cot])
    best = None
    for h in (1.6e-2, 4e-3, 1e-3):  # triples (h, h/2, h/4), two Richardson levels; keep the smallest error estimate
        G = np.zeros((K_COT, K_DIR))
        err = np.zeros((K_COT, K_DIR))
        kink = 0.0
        for k, d in enumerate(dirs):
            f = {s: L([v + s * h * dd for v, dd in zip(theta, d, strict=True)]) for s in (1, -1, 0.5, -0.5, 0.25, -0.25)}
            d1, d2, d3 = (f[1] - f[-1]) / (2 * h), (f[0.5] - f[-0.5]) / h, (f[0.25] - f[-0.25]) / (h / 2)
            r1, r2 = (4 * d2 - d1) / 3, (4 * d3 - d2) / 3
            G[:, k] = (16 * r2 - r1) / 15
            err[:, k] = np.abs(r2 - r1)
            fw, bw = (f[0.25] - L0) / (h / 4), (L0 - f[-0.25]) / (h / 4)
            kink = max(kink, float(np.max(np.abs(fw - bw))))
        rel = float(np.linalg.norm(err) / max(np.linalg.norm(G), 1e-12))
        kink /= max(float(np.max(np.abs(G))), 1e-12)
        if best is None or rel < best[0]:
            best = (rel, h, G, kink)
        if rel < 1e-6:
            break
    return best


def build(size, out):
    store, meta = {}, {}
    for name, e in REG.items():
        t0 = time.time()
        n = getattr(e, size)
        case = e.build(n, 0)
        m = dict(family=e.family, n=n, note=e.note, points=[])
        dpp = case.problem.is_dpp("dgp") if case.gp else case.problem.is_dpp()
        m["dpp"] = bool(dpp)
        m["num_params"] = int(sum(p.size for p in case.parameters))
        m["num_vars"] = int(sum(v.size for v in case.variables))
        rng = np.random.default_rng([101, len(name), sum(map(ord, name))])
        tried = 0
        npts = N_POINTS if size == "small" else 1
        while len(m["points"]) < npts and tried < (25 if size == "small" else 6) and time.time() - t0 < 60:
            tried += 1
            theta = [np.asarray(t, dtype=float) for t in case.sample(rng)]
            try:
                x0, cot, dirs, (rel, h, G, kink), status, val = reference_point(case, theta, rng)
                ug = unique_gap(case, theta, rng)
            except Exception as ex:
                m.setdefault("rejects", []).append(repr(ex)[:120])
                continue
            if rel > 1e-4 or ug > 1e-2:
                m.setdefault("rejects", []).append(f"fd_rel={rel:.1e} unique_gap={ug:.1e} kink={kink:.1e}")
                continue
            if np.linalg.norm(G) < 1e-6:
                m.setdefault("rejects", []).append("zero gradient")
                continue
            i = len(m["points"])
            for j, t in enumerate(theta):
                store[f"{name}/{i}/theta/{j}"] = t
            for j, x in enumerate(x0):
                store[f"{name}/{i}/x/{j}"] = x
            for a, ws in enumerate(cot):
                for j, w in enumerate(ws):
                    store[f"{name}/{i}/cot/{a}/{j}"] = w
            for a, ds in enumerate(dirs):
                for j, d in enumerate(ds):
                    store[f"{name}/{i}/dir/{a}/{j}"] = d
            store[f"{name}/{i}/G"] = G
            m["points"].append(dict(fd_rel_err=rel, fd_h=h, unique_gap=ug, status=status, value=val))
        m["seconds"] = round(time.time() - t0, 2)
        meta[name] = m
        p = m["points"]
        print(
            f"{name:24s} {e.family:5s} dpp={m['dpp']} pts={len(p)} fd_rel={max([q['fd_rel_err'] for q in p], default=-1):.1e} "
            f"ug={max([q['unique_gap'] for q in p], default=-1):.1e} st={set(q['status'] for q in p)} {m['seconds']}s "
            f"rej={m.get('rejects', [])[:3]}",
            flush=True,
        )
    store["__meta__"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    np.savez_compressed(out, **store)


def remake(size, out, names):
    file = np.load(out)
    store = {k: file[k] for k in file.files if k != "__meta__"}
    meta = json.loads(bytes(file["__meta__"]).decode())
    for name in names:
        case = REG[name].build(meta[name]["n"], 0)
        for i, facts in enumerate(meta[name]["points"]):
            key, nvar, npar = f"{name}/{i}", len(case.variables), len(case.parameters)
            theta = [store[f"{key}/theta/{j}"] for j in range(npar)]
            cot = [[store[f"{key}/cot/{a}/{j}"] for j in range(nvar)] for a in range(K_COT)]
            dirs = [[store[f"{key}/dir/{a}/{j}"] for j in range(npar)] for a in range(K_DIR)]
            x0, facts["status"], facts["value"] = solve(case, theta, settings=SCS)
            for j, x in enumerate(x0):
                store[f"{key}/x/{j}"] = x
            facts["fd_rel_err"], facts["fd_h"], store[f"{key}/G"], _ = differences(case, theta, x0, cot, dirs, SCS)
            print(name, i, facts, flush=True)
    store["__meta__"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    np.savez_compressed(out, **store)


if __name__ == "__main__":
    _, size, out, *names = sys.argv
    remake(size, out, names) if names else build(size, out)
