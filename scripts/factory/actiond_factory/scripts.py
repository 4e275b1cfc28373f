"""What happens in a clip: for each class, a script of who moves how, when the action starts and ends, and what is near.

A script is `LENGTH` seconds at `motion.RATE`. Splits: mocap takes go by the `split` column of classes.tsv, which is by
subject wherever a class has two subjects or more; dancing (one subject) goes by take, animations (one artist) are
used for training only, and procedural motion is split by generator seed. Waving, bending and swordplay have captures of
test subjects only, so these are held out whole and training is procedural.
"""

from dataclasses import dataclass, field

import numpy as np

from . import motion as m

LENGTH = 3.2  # seconds of a script; a clip takes 2.92 of them
HELD_DANCES = {"05_04", "05_11", "05_16", "05_19"}


@dataclass
class Script:
    """`actors`: tracks [F, 20, 3] at RATE. `boxes`: furniture (centre xyz, size xyz, yaw). Times in seconds."""

    label: str
    actors: list
    sources: list
    onset: float = 0.0
    end: float = LENGTH
    boxes: list = field(default_factory=list)
    framing: str = "full"
    main: int = 1  # how many of the actors carry the action (the others are bystanders)
    prop: tuple | None = None  # (actor, joint, time from which it is held, rest point)
    flicker: str | None = None
    subject: str = "procedural"


class Library:
    """The takes by kind, with the moments of short actions found once."""

    def __init__(self, takes):
        self.takes = takes
        self.by = {}
        for take in takes:
            split = take.split
            if take.kind == "dancing" and take.subject == "05":
                split = "held" if take.name in HELD_DANCES else "train"
            self.by.setdefault((take.kind, split), []).append(take)
        self.moments = {t.name: find_moments(t) for t in takes}

    def pick(self, rng, kind, split, name=None):
        """A random take of a kind in a split, or None."""
        pool = self.by.get((kind, split), [])
        if name:
            pool = [t for t in pool if name(t)]
        return pool[rng.integers(len(pool))] if pool else None


def find_moments(take):
    """Intervals (start_s, end_s, what) of the short actions inside a take, at its own speed."""
    x, rate = take.track, take.rate
    out = []
    if len(x) < 10:
        return out
    if take.kind == "sit_stand":
        h = np.convolve(np.pad(x[:, m.PELVIS, 1], 15, mode="edge"), np.ones(31) / 31, "valid")
        low, high = np.percentile(h, [8, 92])
        rel = (h - low) / max(high - low, 1e-3)
        state = rel[0] > 0.5
        for i in range(1, len(rel)):
            if (state and rel[i] < 0.3) or (not state and rel[i] > 0.7):
                a = i
                want = 0.93 if state else 0.07
                while a > 0 and (rel[a] < want if state else rel[a] > want) and i - a < 2.5 * rate:
                    a -= 1
                b = i
                want = 0.1 if state else 0.9
                while b < len(rel) - 1 and (rel[b] > want if state else rel[b] < want) and b - i < 2 * rate:
                    b += 1
                out.append((a / rate, b / rate, "sit" if state else "stand"))
                state = not state
    elif take.kind in ("jumping", "jumping_jacks"):
        low = x[:, [m.LTO, m.RTO, m.LAN, m.RAN], 1].min(1)
        air = low > 0.13
        edges = np.flatnonzero(np.diff(np.concatenate([[0], air.astype(int), [0]])))
        for a, b in zip(edges[::2], edges[1::2], strict=True):
            if 0.1 * rate <= b - a <= 0.9 * rate:
                out.append((max(0, a / rate - 0.4), b / rate + 0.3, "jump"))
    elif take.kind == "soccer_kick":
        feet = x[:, [m.LAN, m.RAN]] - x[:, [m.PELVIS]]
        speed = np.linalg.norm(np.diff(feet, axis=0), axis=-1).max(1) * rate
        peak = int(np.argmax(speed))
        out.append((max(0, peak / rate - 0.35), peak / rate + 0.4, "kick"))
    elif take.kind in ("boxing", "punch"):
        hands = x[:, [m.LWR, m.RWR]] - x[:, [m.CHEST]]
        speed = np.linalg.norm(np.diff(hands, axis=0), axis=-1).max(1) * rate
        floor = 2.2 if take.kind == "boxing" else 0.5 * speed.max()
        i = 0
        while i < len(speed):
            if speed[i] > floor:
                j = min(len(speed), i + int(0.4 * rate))
                peak = i + int(np.argmax(speed[i:j]))
                out.append((max(0, peak / rate - 0.2), peak / rate + 0.25, "punch"))
                i = peak + int(0.4 * rate)
            i += 1
    elif take.kind == "bend_scoop":
        h = x[:, m.NECK, 1]
        low = h < 0.75 * np.percentile(h, 90)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], low.astype(int), [0]])))
        for a, b in zip(edges[::2], edges[1::2], strict=True):
            if b - a > 0.2 * rate:
                out.append((max(0, a / rate - 0.5), b / rate + 0.5, "pick"))
    elif take.kind == "waving_traffic":
        up = (x[:, [m.LWR, m.RWR], 1] > x[:, [m.LSH, m.RSH], 1] - 0.05).any(1).astype(float)
        moving = np.linalg.norm(np.diff(x[:, [m.LWR, m.RWR]], axis=0), axis=-1).max(1) * rate > 0.4
        good = np.convolve(up[1:] * moving, np.ones(int(2 * rate)) / (2 * rate), "valid")
        for i in np.flatnonzero(good > 0.6)[:: int(rate / 4)]:
            out.append((i / rate, i / rate + 2.0, "wave"))
    return out


# ---------------------------------------------------------------- helpers


def fit(track, seconds=LENGTH):
    """Exactly `seconds` at RATE: cut, or the last pose held."""
    n = int(seconds * m.RATE) + 1
    if len(track) < n:
        track = np.concatenate([track, np.repeat(track[-1:], n - len(track), axis=0)])
    return track[:n]


def idle_after(rng, track, pose=None):
    """Go on standing after a track that ends before the script does."""
    left = LENGTH - len(track) / m.RATE
    if left <= 0.05:
        return fit(track)
    return fit(m.chain([track, (pose or m.stand(rng, left + 0.6)).solve()], blend=0.35))


def cut(rng, take, start, seconds, tempo):
    """`seconds` of a take from `start` s (both at the played tempo), at RATE, looped if it is too short."""
    track = take.track
    track = (
        m.extend(track, take.rate, seconds * tempo + start + 0.1)
        if start + seconds * tempo > len(track) / take.rate
        else track
    )
    i = int(start * take.rate)
    piece = track[i : i + int(seconds * tempo * take.rate) + 3]
    return m.home(m.resample(piece, take.rate, tempo))


def tempo_of(rng, low=0.75, high=1.7):
    """Log-uniform: real people move faster than captures do."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def moment_clip(rng, lib, take, moment, tempo, onset):
    """A short action of a take with what surrounds it, such that it starts at `onset` s. Returns track, onset, end."""
    a, b, _ = moment
    start = a - onset * tempo
    lead = max(0.0, -start / tempo)
    track = cut(
        rng, take, max(0.0, start), min(LENGTH - lead, (len(take.track) / take.rate - max(0.0, start)) / tempo), tempo
    )
    if lead > 0.05:
        track = m.chain([m.stand(rng, lead + 0.25).solve(), track], blend=0.25)
    return idle_after(rng, track), onset, onset + (b - a) / tempo


def onset_of(rng, length):
    """A start that leaves the action mostly inside every 64-frame crop of the 72 frames."""
    return float(rng.uniform(0.25, max(0.3, min(1.6, 2.6 - length))))


def chair(height, z, back=True, wide=0.45, x=0.0):
    """Boxes of a seat whose sitter's pelvis is at (x, z), facing +z."""
    boxes = [((x, height / 2, z), (wide, height, 0.45), 0.0)]
    if back:
        boxes.append(((x, height + 0.22, z - 0.27), (wide, 0.45, 0.06), 0.0))
    return boxes


# ---------------------------------------------------------------- the classes


def walking(rng, lib, split):
    """Captured (60 %), animated, or procedural walking through most of the clip; sometimes with a stop or a start."""
    tempo = tempo_of(rng, 0.8, 1.75)
    take = None
    r = rng.random()
    if r < 0.6:
        take = lib.pick(rng, "walking", split)
    elif r < 0.7:
        take = lib.pick(rng, "walking", split, lambda t: t.subject == "glb")
    if take is not None:
        span = len(take.track) / take.rate
        track = cut(rng, take, rng.uniform(0, max(0.05, span - LENGTH * tempo)), LENGTH, tempo)
        src, subject = [take.name], take.subject
    else:
        p = m.gait(rng, LENGTH, rng.uniform(0.7, 2.2), arms=rng.choice([None, None, "carry"]))
        if rng.random() < 0.3:  # walking round a curve
            p = curve(rng, p)
        track, src, subject = p.solve(), ["gait"], "procedural"
    onset, end = 0.0, LENGTH
    r = rng.random()
    if r < 0.12:
        onset = rng.uniform(0.2, 0.7)
        track = m.chain([m.stand(rng, onset + 0.25).solve(), track], blend=0.3)
    elif r < 0.22:
        end = rng.uniform(2.2, 2.8)
        track = idle_after(rng, track[: int(end * m.RATE)])
    actors = [fit(track)]
    if rng.random() < 0.25:  # in company, or in a street: all walk
        along = rng.choice([0.0, np.pi, rng.uniform(0, 2 * np.pi)])
        for _ in range(int(rng.integers(1, 4))):
            other = m.gait(rng, LENGTH, rng.uniform(0.6, 1.8)).solve()
            x, z = rng.choice([-1, 1]) * rng.uniform(0.6, 1.8), rng.uniform(-2.0, 2.0)
            actors.append(m.place(fit(other), x, z, along + m.facing(track[0]) + rng.normal(0, 0.2)))
    # Up to a camera in a doorway or on a desk there is no more of them than this.
    framing = upper(rng, 0.15) if len(actors) == 1 else "full"
    return Script("walking", actors, src, onset, end, framing=framing, subject=subject)


def curve(rng, p):
    """Bend a straight gait into an arc by turning everything with the path."""
    rate = rng.uniform(-0.8, 0.8)
    yaw = rate * p.t
    path = np.cumsum(np.stack([np.sin(yaw), np.cos(yaw)], -1) * np.gradient(p.pelvis[:, 2])[:, None], axis=0)
    z = p.pelvis[:, 2].copy()
    for q in [p.pelvis, *p.foot]:
        x, dz = q[:, 0].copy(), q[:, 2] - z
        q[:, 0] = path[:, 0] + np.cos(yaw) * x + np.sin(yaw) * dz
        q[:, 2] = path[:, 1] - np.sin(yaw) * x + np.cos(yaw) * dz
    p.yaw += yaw
    return p


def running(rng, lib, split):
    """Captured (looped), animated or procedural running; some set off, and some come to a stop."""
    tempo = tempo_of(rng, 0.75, 1.35)
    take = lib.pick(rng, "running", split) if rng.random() < 0.55 else None
    if take is not None:
        track, src, subject = cut(rng, take, 0.0, LENGTH, tempo), [take.name], take.subject
    else:
        p = m.gait(rng, LENGTH, rng.uniform(1.8, 5.0), run=True)
        if rng.random() < 0.3:
            p = curve(rng, p)
        track, src, subject = p.solve(), ["gait run"], "procedural"
    onset, end = 0.0, LENGTH
    r = rng.random()
    if r < 0.12:
        onset = rng.uniform(0.2, 0.9)
        track = m.chain([m.stand(rng, onset + 0.25).solve(), track], blend=0.3)
    elif r < 0.42:
        end = rng.uniform(1.6, 2.8)
        track = track[: int(end * m.RATE)]
        if rng.random() < 0.6:  # the last steps are a walk
            track = m.chain([track, m.gait(rng, rng.uniform(0.5, 1.0), rng.uniform(0.6, 1.3)).solve()], blend=0.3)
        track = idle_after(rng, track)
    elif r < 0.6:  # on the spot, as on a treadmill or before a tracking camera
        keep = rng.uniform(0.0, 0.35)
        track = track.copy()
        travel = (track[:, m.PELVIS] - track[0, m.PELVIS]) * np.array([1, 0, 1])
        k = np.ones(41) / 41
        for axis in (0, 2):
            travel[:, axis] = np.convolve(np.pad(travel[:, axis], 20, mode="edge"), k, "valid")
        track -= ((1 - keep) * travel)[:, None].astype(np.float32)
    return Script("running", [fit(track)], src, onset, end, subject=subject)


def jumping(rng, lib, split):
    """Captured jumps, jumping jacks, and procedural jumps and hops (one or many)."""
    r = rng.random()
    tempo = tempo_of(rng, 0.85, 1.4)
    if r < 0.4:
        take = lib.pick(rng, "jumping", split)
        moments = lib.moments[take.name] if take else []
        if moments:
            moment = moments[rng.integers(len(moments))]
            track, a, b = moment_clip(rng, lib, take, moment, tempo, onset_of(rng, (moment[1] - moment[0]) / tempo))
            return Script("jumping", [fit(track)], [take.name], a, b, subject=take.subject)
    if r < 0.5:
        take = lib.pick(rng, "jumping_jacks", split)
        moments = lib.moments[take.name] if take else []
        if take is not None and (moments or take.subject == "glb"):
            start = max(0.0, moments[rng.integers(len(moments))][0] - 0.3) if take.subject != "glb" else 0.0
            return Script("jumping", [fit(cut(rng, take, start, LENGTH, tempo))], [take.name], subject=take.subject)
    if r < 0.75:
        repeat, flight, onset = int(rng.integers(3, 9)), rng.uniform(0.14, 0.36), rng.uniform(0.05, 0.6)
        forward = rng.choice([0.0, 0.0, rng.uniform(0.1, 0.5)])
    else:
        repeat, flight, onset = 1, rng.uniform(0.25, 0.62), rng.uniform(0.25, 1.4)
        forward = rng.choice([0.0, rng.uniform(0.2, 1.6)])
    track, end = m.hop(rng, LENGTH, onset, flight, forward, repeat, arms=rng.choice([None, None, "jack"]))
    return Script("jumping", [fit(track)], ["hop"], onset, end)


def sitting_down(rng, lib, split):
    """Onto chairs, sofas and the floor: procedural (65 %), captured on stools, animated."""
    r = rng.random()
    if r < 0.28:
        take = lib.pick(rng, "sit_stand", split)
        moments = [x for x in lib.moments[take.name] if x[2] == "sit"] if take else []
        if moments:
            moment = moments[rng.integers(len(moments))]
            tempo = tempo_of(rng, 0.9, 1.8)
            track, a, b = moment_clip(rng, lib, take, moment, tempo, onset_of(rng, (moment[1] - moment[0]) / tempo))
            low = track[min(int(b * m.RATE), len(track) - 1)]
            return Script("sitting down", [track], [take.name], a, b, stool(low), subject=take.subject)
    if r < 0.34 and split == "train":
        take = lib.pick(rng, "sit_enter", split)
        tempo = tempo_of(rng, 0.8, 1.5)
        track = m.home(m.resample(take.track, take.rate, tempo))
        onset = onset_of(rng, len(track) / m.RATE)
        length = len(track) / m.RATE
        track = fit(m.chain([m.stand(rng, onset + 0.2).solve(), track], blend=0.2))
        return Script("sitting down", [track], [take.name], onset, onset + length, stool(track[-1]), subject="glb")
    height = rng.choice([rng.uniform(0.36, 0.6), rng.uniform(0.36, 0.6), rng.uniform(0.36, 0.6), 0.02])
    # Who is on the floor in less has fallen.
    duration = rng.uniform(0.6, 1.6) if height > 0.1 else rng.uniform(1.3, 2.3)
    onset = onset_of(rng, duration)
    track, info = m.sit_down(rng, onset, duration, LENGTH - onset - duration + 0.1, height)
    if rng.random() < 0.25 and onset > 0.5:  # walks up and turns round first
        lead = m.gait(rng, onset * 0.8, rng.uniform(0.8, 1.4)).solve()
        track = m.chain([lead, track[int(onset * 0.8 * m.RATE) :]], blend=0.3, turns=[rng.uniform(-1.5, 1.5)])
        return Script(
            "sitting down",
            [fit(track)],
            ["gait", "sit"],
            onset,
            onset + duration,
            stool(track[-1]) if height > 0.1 else [],
        )
    boxes = chair(height, info["z"] - 0.05, rng.random() < 0.7, rng.choice([0.45, 0.5, 1.4])) if height > 0.1 else []
    return Script("sitting down", [fit(track)], ["sit"], onset, onset + duration, boxes)


def stool(pose):
    """A box under a sitting pose."""
    pelvis = pose[m.PELVIS]
    height = float(max(0.12, pelvis[1] - 0.11))
    return [((float(pelvis[0]), height / 2, float(pelvis[2])), (0.42, height, 0.42), m.facing(pose))]


def standing_up(rng, lib, split):
    """The way back: procedural (played backwards, other tempo), captured, animated."""
    r = rng.random()
    if r < 0.28:
        take = lib.pick(rng, "sit_stand", split)
        moments = [x for x in lib.moments[take.name] if x[2] == "stand"] if take else []
        if moments:
            moment = moments[rng.integers(len(moments))]
            tempo = tempo_of(rng, 0.9, 1.8)
            track, a, b = moment_clip(rng, lib, take, moment, tempo, onset_of(rng, (moment[1] - moment[0]) / tempo))
            return Script(
                "standing up", [track], [take.name], a, b, stool(track[int(a * m.RATE)]), subject=take.subject
            )
    if r < 0.34 and split == "train":
        take = lib.pick(rng, "sit_exit", split)
        track = m.home(m.resample(take.track, take.rate, tempo_of(rng, 0.8, 1.5)))
        length = len(track) / m.RATE
        onset = onset_of(rng, length)
        track = np.concatenate([np.repeat(track[:1], int(onset * m.RATE), axis=0), track])
        return Script(
            "standing up", [idle_after(rng, track)], [take.name], onset, onset + length, stool(track[0]), subject="glb"
        )
    height = rng.choice([rng.uniform(0.36, 0.6), rng.uniform(0.36, 0.6), rng.uniform(0.36, 0.6), 0.02])
    # Who is on the floor in less has fallen.
    duration = rng.uniform(0.6, 1.6) if height > 0.1 else rng.uniform(1.3, 2.3)
    onset = onset_of(rng, duration)
    track, info = m.sit_down(rng, LENGTH - onset - duration, duration, onset + 0.1, height)
    track = fit(track)[::-1].copy()
    boxes = chair(height, info["z"] - 0.05, rng.random() < 0.7, rng.choice([0.45, 0.5, 1.4])) if height > 0.1 else []
    if rng.random() < 0.25 and onset + duration < 2.4:
        track = fit(
            m.chain(
                [track[: int((onset + duration + 0.1) * m.RATE)], m.gait(rng, 2.0, rng.uniform(0.8, 1.4)).solve()],
                blend=0.3,
            )
        )
    return Script("standing up", [track], ["sit reversed"], onset, onset + duration, boxes)


def picking_up(rng, lib, split):
    """Bending or squatting to the floor or a low table and rising, with or without something in the hand."""
    r = rng.random()
    if r < 0.3:
        take = lib.pick(rng, "bend_scoop", split)
        moments = lib.moments[take.name] if take else []
        if moments:
            moment = moments[rng.integers(len(moments))]
            tempo = tempo_of(rng, 0.9, 1.8)
            track, a, b = moment_clip(rng, lib, take, moment, tempo, rng.uniform(0.2, 0.6))
            return Script("picking up", [track], [take.name], a, b, subject=take.subject)
    if r < 0.05 and split == "train":
        take = lib.pick(rng, "pickup", split)
        track = m.home(m.resample(take.track, take.rate, tempo_of(rng, 0.7, 1.3)))
        onset = onset_of(rng, len(track) / m.RATE)
        end = onset + len(track) / m.RATE
        track = idle_after(rng, m.chain([m.stand(rng, onset + 0.2).solve(), track], blend=0.2))
        return Script("picking up", [track], [take.name], onset, end, subject="glb")
    duration = rng.uniform(0.9, 2.1)
    onset = float(rng.uniform(0.2, max(0.3, 2.75 - duration)))
    height = rng.choice([rng.uniform(0.0, 0.15), rng.uniform(0.0, 0.15), rng.uniform(0.2, 0.55)])
    track, hand, grab, point = m.pick_up(rng, onset, duration, LENGTH - onset - duration + 0.1, height)
    boxes = (
        [((point[0], height / 2, point[2] + 0.1), (rng.uniform(0.4, 1.0), height, 0.4), 0.0)] if height > 0.18 else []
    )
    prop = (0, (m.LHA, m.RHA)[hand], grab, tuple(point)) if rng.random() < 0.6 else None
    src = ["pick up"]
    if rng.random() < 0.2 and onset > 0.6:
        lead = m.gait(rng, onset * 0.8, rng.uniform(0.8, 1.3)).solve()
        track, prop, boxes = fit(m.chain([lead, track[int(onset * 0.8 * m.RATE) :]], blend=0.3)), None, []
        src = ["gait", "pick up"]
    return Script("picking up", [fit(track)], src, onset, onset + duration, boxes, prop=prop)


def falling(rng, lib, split):
    """Falls in every direction, collapses, from a chair, after walking or running, then lying still."""
    if split == "train" and rng.random() < 0.06:
        take = lib.pick(rng, "death", split)
        track = m.home(m.resample(take.track, take.rate, tempo_of(rng, 0.9, 1.5)))
        onset = rng.uniform(0.1, 0.8)
        track = fit(m.chain([m.stand(rng, onset + 0.2).solve(), track], blend=0.2))
        return Script("falling", [track], [take.name], onset, onset + 1.2, subject="glb")
    duration = rng.uniform(0.5, 1.5)
    mode = m.FALLS[rng.integers(len(m.FALLS))]
    onset = onset_of(rng, duration)
    speed = rng.uniform(0.0, 0.8) if mode == "forward" and rng.random() < 0.5 else 0.0
    height = rng.uniform(0.38, 0.55)
    src = [f"fall {mode}"]
    boxes = []
    if mode != "seated" and rng.random() < 0.45:
        lead_time = max(0.3, onset)
        run = rng.random() < 0.2
        lead = m.gait(rng, lead_time, rng.uniform(2.0, 3.2) if run else rng.uniform(0.7, 1.7), run=run).solve()
        track, _ = m.fall(rng, 0.15, duration, LENGTH, mode, speed=speed)
        track = m.chain([lead, track], blend=0.2, turns=[rng.choice([0.0, rng.uniform(-0.6, 0.6)])])
        src.insert(0, "gait")
    else:
        track, _ = m.fall(rng, onset, duration, LENGTH - onset - duration + 0.1, mode, height=height)
        if mode == "seated":
            boxes = chair(height, -0.05, rng.random() < 0.6, rng.choice([0.45, 1.4]))
        elif mode == "missed" and rng.random() < 0.5:  # the chair, pushed or drawn away
            boxes = chair(height, rng.uniform(-1.6, -1.05), rng.random() < 0.7, x=rng.normal(0, 0.2))
    return Script("falling", [fit(track)], src, onset, onset + duration, boxes)


def waving(rng, lib, split):
    """One or both hands, standing, sitting or walking, for at least 1.4 s; held-out also from the capture."""
    if rng.random() < 0.45:
        take = lib.pick(rng, "waving_traffic", split)
        moments = lib.moments[take.name] if take else []
        if moments:
            moment = moments[rng.integers(len(moments))]
            track = cut(rng, take, max(0, moment[0] - 0.3), LENGTH, tempo_of(rng, 0.8, 1.4))
            return Script("waving", [fit(track)], [take.name], subject=take.subject, framing=upper(rng, 0.3))
    if split == "train" and rng.random() < 0.06:
        take = lib.pick(rng, "greeting", split)
        track = m.extend(take.track, take.rate, LENGTH * 1.2)
        return Script(
            "waving",
            [idle_after(rng, m.home(m.resample(track, take.rate, tempo_of(rng, 0.9, 1.4))))],
            [take.name],
            subject="glb",
        )
    boxes, r = [], rng.random()
    if r < 0.68:
        p = m.stand(rng, LENGTH)
        if rng.random() < 0.25:  # turning to somebody else meanwhile
            p.yaw += m.keys(p.t, [(rng.uniform(0, 1), 0), (rng.uniform(1.4, 3.0), rng.uniform(-1.6, 1.6))])
    elif r < 0.88:
        height = rng.uniform(0.38, 0.55)
        p = m.seat(rng, LENGTH, height)
        boxes = chair(height, -0.05, rng.random() < 0.7)
    else:
        p = m.gait(rng, LENGTH, rng.uniform(0.5, 1.0))
    start = rng.choice([0.0, rng.uniform(0.0, 1.2)]) - 0.3
    stop = rng.choice([4.0, rng.uniform(start + 1.5, 3.2)])
    hands = [(0,), (1,), (1,), (0, 1)][rng.integers(4)]
    track = m.wave(rng, p, start, stop, hands).solve()
    return Script("waving", [fit(track)], ["wave"], max(0, start), min(stop, LENGTH), boxes, framing=upper(rng, 0.35))


def upper(rng, share):
    """Framing of the upper body in a share of the clips."""
    return "upper" if rng.random() < share else "full"


def strikes(kind):
    """Script of punching, kicking or pushing: mostly two people, sometimes in the air, sometimes captured."""

    def script(rng, lib, split):
        label = kind
        if kind == "punching" and rng.random() < 0.3:
            return bout(rng)
        r = rng.random()
        alone = r < {"punching": 0.26, "kicking": 0.32, "pushing": 0.0}[kind]
        captured = None
        if kind == "punching" and rng.random() < 0.4:
            captured = (
                lib.pick(rng, "boxing", split)
                if rng.random() < 0.8 or split == "held"
                else lib.pick(rng, "punch", split)
            )
        if kind == "kicking" and rng.random() < 0.22:
            captured, alone = lib.pick(rng, "soccer_kick", split), alone or rng.random() < 0.6
        count = int(rng.choice({"punching": [1, 1, 1, 2, 3, 6], "kicking": [1, 1, 1, 2, 3]}.get(kind, [1, 1, 1, 2])))
        distance = {
            "punching": rng.uniform(0.5, 0.8),
            "kicking": rng.uniform(0.65, 1.0),
            "pushing": rng.uniform(0.5, 0.75),
        }[kind]
        height = {
            "punching": rng.choice([rng.uniform(1.45, 1.65), rng.uniform(1.1, 1.4)]),
            "kicking": rng.choice([rng.uniform(0.15, 0.5), rng.uniform(0.6, 1.0), rng.uniform(1.0, 1.5)]),
            "pushing": rng.uniform(1.15, 1.4),
        }[kind]
        approach = 0.0 if rng.random() < 0.4 else rng.uniform(0.4, 1.1)
        # At a ball one runs up.
        run_up = kind == "kicking" and alone and rng.random() < 0.5
        if run_up:
            approach, count, height = rng.uniform(0.6, 1.3), 1, rng.uniform(0.12, 0.6)
        if captured is not None and lib.moments[captured.name]:
            moments = lib.moments[captured.name]
            moment = moments[rng.integers(len(moments))]
            tempo = tempo_of(rng, 0.9, 1.4)
            attacker, onset, end = moment_clip(rng, lib, captured, moment, tempo, rng.uniform(0.4, 1.4))
            end = LENGTH if len(moments) > 2 and captured.kind == "boxing" else end
            hit = onset + 0.2 / tempo
            contacts = [hit]
            for a, _, _ in moments if captured.kind == "boxing" else []:
                at = onset + (a - moment[0]) / tempo + 0.2 / tempo
                if hit + 0.5 < at < 2.8:
                    contacts.append(at)
            at = int(min(hit + 0.05, LENGTH) * m.RATE)
            attacker = m.place(attacker, -attacker[at, m.PELVIS, 0], -attacker[at, m.PELVIS, 2])
            attacker = m.place(attacker, yaw=-m.facing(attacker[at]))
            src, subject = [captured.name], captured.subject
        else:
            # Half of the blows come from a stand some steps away: a quarrel, not a fight at arm's length.
            lunge = rng.uniform(0.4, 2.0) if rng.random() < 0.5 and not run_up else 0.0
            step = rng.choice([0.0, rng.uniform(0.1, 0.4)]) if not lunge else 0.0
            lead = approach if not lunge else 0.0
            onset = rng.uniform(0.3, 1.1) if not lead else 0.25
            goal = (rng.normal(0, 0.05), height, distance - 0.1 + step)
            if lunge and rng.random() < 0.5:  # one blow, mostly, that ends the quarrel
                count = 1
            attacker, contacts, end = m.strike(rng, kind, LENGTH, onset, goal, count, step=step, lunge=lunge)
            if lead:
                speed = rng.uniform(1.8, 4.5) if run_up else rng.uniform(1.0, 2.2)
                walk = m.gait(rng, lead, speed, run=run_up).solve()
                joined = m.chain([walk, attacker], blend=0.2)
                shift = len(walk) / m.RATE - 0.2
                at = int((shift + 0.25) * m.RATE)
                joined = m.place(joined, -joined[at, m.PELVIS, 0], -joined[at, m.PELVIS, 2])
                attacker = joined
                onset, end, contacts = onset + shift, end + shift, [c + shift for c in contacts]
            distance += step
            src, subject = [f"strike {kind}"], "procedural"
        actors = [fit(attacker)]
        boxing = captured is not None and captured.kind == "boxing" and lib.moments[captured.name]
        if boxing and not alone and rng.random() < 0.6:  # the other one gives as good as he gets
            other = lib.pick(rng, "boxing", split)
            span = len(other.track) / other.rate
            tempo = tempo_of(rng, 0.9, 1.4)
            rival = fit(cut(rng, other, rng.uniform(0, max(0.05, span - LENGTH * tempo)), LENGTH, tempo))
            rival = m.place(rival, yaw=np.pi - m.facing(rival[at]) + rng.normal(0, 0.3))
            x, z = rival[at, m.PELVIS, 0], rival[at, m.PELVIS, 2]
            actors.append(m.place(rival, rng.normal(0, 0.1) - x, distance + rng.uniform(0.1, 0.5) - z))
        elif not alone and kind != "pushing" and rng.random() < 0.2:  # they fight: both strike
            goal = (rng.normal(0, 0.05), height, distance)
            rival, _, _ = m.strike(rng, kind, LENGTH, rng.uniform(0.2, 1.4), goal, count)
            actors.append(m.place(fit(rival), x=rng.normal(0, 0.1), z=distance + 0.12, yaw=np.pi + rng.normal(0, 0.25)))
        elif not alone:
            # Some blows only pretend: they stop short, and who should be hit hardly plays along.
            if rng.random() < 0.3:
                distance += rng.uniform(0.05, 0.25)
            victim = fit(m.recoil(rng, LENGTH, contacts, kind, rng.uniform(0.25, 1.3)))
            actors.append(m.place(victim, x=rng.normal(0, 0.06), z=distance + 0.12, yaw=np.pi + rng.normal(0, 0.25)))
        if alone:
            framing = upper(rng, 0.2 if kind == "punching" else 0.0)
        else:
            framing = str(rng.choice(["crop", "tight", "full"], p=[0.5, 0.25, 0.25]))
        return Script(label, actors, src, onset, min(end, LENGTH), framing=framing, main=len(actors), subject=subject)

    return script


def bout(rng):
    """One boxes the air or something unseen, or two box each other."""
    one, hits = m.box(rng, LENGTH + 0.1)
    actors = [fit(one)]
    if rng.random() < 0.35:
        other, _ = m.box(rng, LENGTH + 0.1)
        actors.append(m.place(fit(other), rng.normal(0, 0.1), rng.uniform(0.7, 1.3), np.pi + rng.normal(0, 0.2)))
        framing = str(rng.choice(["crop", "tight", "full"], p=[0.4, 0.2, 0.4]))
    else:
        framing = upper(rng, 0.25)
    return Script("punching", actors, ["box"], max(0.0, hits[0] - 0.2), LENGTH, framing=framing, main=len(actors))


def dancing(rng, lib, split):
    """Captured dance (train and held by take), animated, and made-up rhythmic dancing."""
    r = rng.random()
    if r < 0.6:
        take = lib.pick(rng, "dancing", split)
        if take is not None:
            tempo = tempo_of(rng, 0.8, 1.5)
            span = len(take.track) / take.rate
            track = cut(rng, take, rng.uniform(0, max(0.05, span - LENGTH * tempo)), LENGTH, tempo)
            actors = troupe(rng, fit(track))
            return Script("dancing", actors, [take.name], subject=take.subject, main=len(actors))
    actors = troupe(rng, fit(m.dance(rng, LENGTH)))
    return Script("dancing", actors, ["dance"], main=len(actors))


def troupe(rng, track):
    """One dancer, or up to four beside each other who dance the same, nearly at the same time."""
    actors = [track]
    if rng.random() < 0.3:
        gap = rng.uniform(0.8, 1.4)
        for i in range(1, int(rng.integers(2, 5))):
            late = int(rng.uniform(0, 0.15) * m.RATE)
            other = np.concatenate([np.repeat(track[:1], late, axis=0), track])[: len(track)]
            other = m.resize_bones(m.mirror(other) if rng.random() < 0.15 else other, rng)
            actors.append(m.place(other, (i if i % 2 else -i) * gap, rng.normal(0, 0.2)))
    return actors


def nothing(rng, lib, split):
    """Empty scenes, people who stand, sit, lie, talk, sign, drink, type, shake hands, hug, point; things that move."""
    kinds = ["empty", "idle", "seated", "lying", "signing", "captured", "animated", "pair", "hands", "turn"]
    share = np.array([0.12, 0.16, 0.12, 0.07, 0.14, 0.1, 0.07, 0.13, 0.04, 0.05])
    kind = kinds[rng.choice(len(kinds), p=share / share.sum())]
    s = Script("nothing", [], [kind], 0.0, 0.0)
    if rng.random() < 0.12:
        s.flicker = str(rng.choice(["switch", "bump", "fade"]))
    if kind == "idle":
        p = m.stand(rng, LENGTH)
        if rng.random() < 0.4:
            m.gesture(p, rng, [(0,), (1,), (0, 1)][rng.integers(3)], (0.4, 1.4), hold=0.6)
        s.actors, s.framing = [p.solve()], upper(rng, 0.35)
    elif kind == "seated":
        height = rng.choice([0.02, rng.uniform(0.38, 0.55), rng.uniform(0.38, 0.55)])
        p = m.seat(rng, LENGTH, height)
        r = rng.random()
        if r < 0.25:  # typing
            for k, v in enumerate(m.both((-0.15, -0.5, 0.6))):
                wobble = np.stack([m.wander(rng, p.t, 0.03, 0.7) for _ in range(3)], -1)
                p.hand[k] = v + wobble
        elif r < 0.5:
            m.gesture(p, rng, [(0,), (1,), (0, 1)][rng.integers(3)], (0.4, 1.4), hold=0.6)
        s.actors, s.framing = [p.solve()], upper(rng, 0.4)
        s.boxes = chair(height, -0.05, rng.random() < 0.7, rng.choice([0.45, 1.4])) if height > 0.1 else []
        if r < 0.25:
            s.boxes.append(((0.0, 0.36, 0.6), (1.2, 0.72, 0.6), 0.0))
    elif kind == "lying":
        height = rng.choice([0.0, 0.0, rng.uniform(0.3, 0.55)])
        track = m.lying(rng, LENGTH)
        track[..., 1] += height
        s.actors = [track]
        s.boxes = [((0, height / 2, 0), (1.1, height, 2.1), 0.0)] if height else []
    elif kind in ("signing", "hands"):
        p = m.stand(rng, LENGTH, rest="chest") if rng.random() < 0.7 else m.seat(rng, LENGTH, 0.45)
        hands = [(0, 1), (0, 1), (1,), (0,)][rng.integers(4)]
        box = ((-0.45, 0.5), (-0.6, rng.choice([0.1, 0.35])), (0.25, 0.85))
        m.gesture(p, rng, hands, (0.14, rng.uniform(0.3, 0.6)), box, hold=rng.uniform(0.1, 0.6))
        s.actors, s.framing = [p.solve()], "upper" if kind == "signing" else "hands"
    elif kind == "captured":
        take = lib.pick(rng, str(rng.choice(["drinking", "laughing_gesture", "washing_window"])), split)
        take = take or lib.pick(rng, "drinking", split)
        tempo = tempo_of(rng, 0.8, 1.4)
        if take is None:
            s.actors = [m.stand(rng, LENGTH).solve()]
        else:
            span = len(take.track) / take.rate
            s.actors = [fit(cut(rng, take, rng.uniform(0, max(0.05, span - LENGTH * tempo)), LENGTH, tempo))]
            s.sources, s.subject, s.framing = [take.name], take.subject, upper(rng, 0.4)
    elif kind == "animated":
        take = lib.pick(rng, str(rng.choice(["idle", "idle", "seated"])), "train") if split == "train" else None
        if take is None:
            s.actors = [m.stand(rng, LENGTH).solve()]
        else:
            track = m.extend(take.track, take.rate, LENGTH * 1.2 + 0.2)
            s.actors = [idle_after(rng, m.home(m.resample(track, take.rate, tempo_of(rng, 0.8, 1.2))))]
            s.sources, s.subject, s.framing = [take.name], "glb", upper(rng, 0.3)
    elif kind == "turn":  # turning on the spot, looking about, shifting weight
        p = m.stand(rng, LENGTH, unrest=2.0)
        p.yaw += m.keys(p.t, [(rng.uniform(0, 0.5), 0), (rng.uniform(1.2, 3.0), rng.uniform(-1.6, 1.6))])
        s.actors = [p.solve()]
    elif kind == "pair":
        pair(rng, s)
    s.main = len(s.actors)
    return s


def pair(rng, s):
    """Two people: talk, handshake, hug, point, hand something over. Close, seldom at rest, and no blow."""
    what = ["talk", "shake", "hug", "point", "give"][rng.integers(5)]
    s.sources.append(what)
    distance = {"talk": rng.uniform(0.6, 1.8), "shake": rng.uniform(0.65, 0.85), "hug": rng.uniform(0.32, 0.42)}.get(
        what, rng.uniform(0.6, 1.5)
    )
    a, b = m.stand(rng, LENGTH), m.stand(rng, LENGTH)
    t = a.t
    start = rng.uniform(0.1, 1.0)
    on = m.keys(
        t,
        [(start, 0), (start + rng.uniform(0.35, 0.7), 1), (rng.uniform(2.0, 2.6), 1), (LENGTH, rng.choice([0.0, 1.0]))],
    )
    apart = np.zeros_like(t)
    if what == "talk":
        for p in (a, b):
            if rng.random() < 0.75:
                m.gesture(p, rng, [(0,), (1,), (0, 1)][rng.integers(3)], (0.3, 1.0), hold=0.5)
    elif what == "shake":
        shake = 0.05 * np.sin(2 * np.pi * rng.uniform(1.5, 3) * t)
        for p in (a, b):
            p.reach[1] = (on, np.stack([0 * t - 0.03, 1.05 + shake, 0 * t + distance / 2 - 0.05], -1))
    elif what == "hug":
        apart = (1 - on) * rng.uniform(0.2, 0.7)
        for p, s1 in ((a, 1), (b, -1)):
            for k, side in ((0, 1), (1, -1)):
                goal = np.array([side * 0.2, 1.25 + 0.12 * s1 * side, distance + 0.05])
                p.reach[k] = (on, np.tile(goal, (len(t), 1)))
            p.pitch += 0.12 * on
    elif what == "point":
        direction = np.array([rng.uniform(-0.8, 0.2), rng.uniform(-0.1, 0.4), rng.uniform(0.5, 0.95)])
        a.hand[1] = a.hand[1] * (1 - on[:, None]) + direction * on[:, None]
    else:
        for p in (a, b):
            p.reach[1] = (on, np.tile([-0.05, 1.1, distance / 2], (len(t), 1)))
        s.prop = (0, m.RHA, 0.0, (0, 0, 0))
    for p in (a, b):
        if what != "hug" and rng.random() < 0.35:  # walks up first, as those who strike do
            far, speed = rng.uniform(0.4, 1.8), rng.uniform(0.9, 2.2)
            from_ = rng.uniform(-0.5, 0.6)
            m.follow(p, m.keys(t, [(from_, -far), (from_ + far / speed, 0.0)]), rng.uniform(0.4, 0.8))
        p.pelvis[:, 2] -= apart / 2
        for f in p.foot:
            f[:, 2] -= apart / 2
    s.actors = [a.solve(), m.place(b.solve(), z=distance, yaw=np.pi + rng.normal(0, 0.1))]
    s.framing = str(rng.choice(["crop", "tight", "full"], p=[0.45, 0.25, 0.3]))


SCRIPTS = {
    "nothing": nothing,
    "walking": walking,
    "running": running,
    "jumping": jumping,
    "sitting down": sitting_down,
    "standing up": standing_up,
    "picking up": picking_up,
    "falling": falling,
    "waving": waving,
    "punching": strikes("punching"),
    "kicking": strikes("kicking"),
    "pushing": strikes("pushing"),
    "dancing": dancing,
}


def write(rng, lib, split, label):
    """A script of `label`: mirrored half of the time, every body resized, bystanders added to some."""
    s = SCRIPTS[label](rng, lib, split)
    s.actors = [fit(m.resize_bones(a, rng)) if len(s.actors) == 1 and not s.boxes else fit(a) for a in s.actors]
    if s.actors and rng.random() < 0.5:
        s.actors = [m.mirror(a) for a in s.actors]
        s.boxes = [((-c[0], c[1], c[2]), size, -yaw) for c, size, yaw in s.boxes]
        if s.prop:
            swap = {m.LHA: m.RHA, m.RHA: m.LHA}
            s.prop = (s.prop[0], swap[s.prop[1]], s.prop[2], (-s.prop[3][0], *s.prop[3][1:]))
    busy = rng.random()
    if s.actors and s.framing == "full" and busy < (0.15 if len(s.actors) == 1 else 0.06):
        if label == "nothing" or busy < 0.11:
            by = m.stand(rng, LENGTH).solve()
        else:
            by = (
                m.gait(rng, LENGTH, rng.uniform(0.6, 1.3)).solve()
                if label in ("walking", "running")
                else m.seat(rng, LENGTH).solve()
            )
        angle, far = rng.uniform(0, 6.28), rng.uniform(1.2, 3.0)
        s.actors.append(m.place(fit(by), far * np.sin(angle), far * np.cos(angle), rng.uniform(0, 6.28)))
    return s
