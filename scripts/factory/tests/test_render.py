"""The renderer: determinism, the 25-fps rule, the shard contract, the readers. Procedural motion only, except one."""

import argparse
import json
import os
import pickle
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from actiond_factory import __main__ as command
from actiond_factory import motion as m
from actiond_factory import render, scene, scripts
from actiond_factory.classes import LABELS
from actiond_factory.data import GRID, SIZE
from actiond_factory.errors import BadInput

cv2.setNumThreads(1)

BVH = """HIERARCHY
ROOT Hips
{
  OFFSET 0 0 0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation
""" + "".join(
    f"""  JOINT {side}UpLeg
  {{
    OFFSET {x} 0 0
    CHANNELS 3 Zrotation Yrotation Xrotation
    JOINT {side}Leg
    {{
      OFFSET 0 -44 0
      CHANNELS 3 Zrotation Yrotation Xrotation
      JOINT {side}Foot
      {{
        OFFSET 0 -43 0
        CHANNELS 3 Zrotation Yrotation Xrotation
        JOINT {side}ToeBase
        {{
          OFFSET 0 -4 15
          CHANNELS 3 Zrotation Yrotation Xrotation
          End Site
          {{
            OFFSET 0 0 5
          }}
        }}
      }}
    }}
  }}
"""
    for side, x in (("Left", 10), ("Right", -10))
) + """  JOINT Spine1
  {
    OFFSET 0 26 0
    CHANNELS 3 Zrotation Yrotation Xrotation
    JOINT Neck
    {
      OFFSET 0 24 0
      CHANNELS 3 Zrotation Yrotation Xrotation
      JOINT Head
      {
        OFFSET 0 8 0
        CHANNELS 3 Zrotation Yrotation Xrotation
        End Site
        {
          OFFSET 0 18 0
        }
      }
    }
""" + "".join(
    f"""    JOINT {side}Arm
    {{
      OFFSET {x} 20 0
      CHANNELS 3 Zrotation Yrotation Xrotation
      JOINT {side}ForeArm
      {{
        OFFSET {x * 1.6} 0 0
        CHANNELS 3 Zrotation Yrotation Xrotation
        JOINT {side}Hand
        {{
          OFFSET {x * 1.5} 0 0
          CHANNELS 3 Zrotation Yrotation Xrotation
          JOINT {side}HandIndex1
          {{
            OFFSET {x * 0.5} 0 0
            CHANNELS 3 Zrotation Yrotation Xrotation
            End Site
            {{
              OFFSET {x * 0.1} 0 0
            }}
          }}
        }}
      }}
    }}
"""
    for side, x in (("Left", 17.5), ("Right", -17.5))
) + """  }
}
MOTION
Frames: 5
Frame Time: 0.00833333
"""  # fmt: skip


def bvh(frames):
    """The text with root position and yaw (degrees) per frame, everything else at rest."""
    joints = BVH.count("JOINT")
    lines = [" ".join(map(str, [*position, 0, yaw, 0] + [0] * (3 * joints))) for position, yaw in frames]
    return BVH + "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def lib():
    """A library without any capture: every script falls back on procedural motion."""
    return scripts.Library([])


def procedural(label, number, lib):
    """A clip of `label` in the held-out split (whose scripts need no animation)."""
    return render.render_clip(lib, "held", number, label)


def test_bvh_positions_scale_and_skip():
    track = m.read_bvh(bvh([((0, 999, 0), 0)] + [((0, 91, 0), 0), ((100, 91, 0), 90)]), skip=1, step=1)
    assert track.shape == (2, 20, 3)
    leg = np.linalg.norm(track[0, m.LHI] - track[0, m.LKN]) + np.linalg.norm(track[0, m.LKN] - track[0, m.LAN])
    assert leg == pytest.approx(0.87, abs=1e-3)
    assert track[0, [m.LTO, m.RTO], 1].min() == pytest.approx(0.03, abs=0.02)
    assert m.facing(track[0]) == pytest.approx(0.0, abs=1e-5)
    assert m.facing(track[1]) == pytest.approx(np.pi / 2, abs=1e-5)
    assert track[1, m.PELVIS, 0] - track[0, m.PELVIS, 0] == pytest.approx(1.0, abs=0.01)


def test_unknown_joint_names_are_refused():
    with pytest.raises(ValueError, match="unknown joint names"):
        m.canonical(["a", "b"], np.zeros((1, 2, 3)))


@pytest.mark.parametrize("speed, run", [(1.2, False), (2.0, False), (3.5, True)])
def test_gait_keeps_its_feet_on_the_floor(speed, run):
    track = m.gait(np.random.default_rng(3), 3.0, speed, run=run).solve()
    low = track[:, [m.LAN, m.RAN], 1].min(1)
    assert low.min() > 0.03
    if not run:
        assert np.percentile(low, 90) < 0.16
    moved = track[-1, m.PELVIS, 2] - track[0, m.PELVIS, 2]
    assert moved == pytest.approx(speed * 2.99, rel=0.05)


def test_a_walkers_standing_foot_does_not_slide():
    track = m.gait(np.random.default_rng(5), 3.0, 1.3).solve()
    feet = track[:, [m.LAN, m.RAN]]
    step = np.linalg.norm(np.diff(feet, axis=0), axis=-1).min(1) * m.RATE
    assert np.median(step) < 0.15


def test_a_fall_ends_on_the_floor():
    for mode in m.FALLS:
        for seed in range(7, 17):
            track, _ = m.fall(np.random.default_rng(seed), 0.6, 0.9, 1.5, mode)
            assert track[0, m.HEAD, 1] > 1.0
            # Who missed the seat may stay sitting on the floor.
            assert track[-1, m.HEAD, 1] < (1.0 if mode == "missed" else 0.6), (mode, seed)
            assert track[-1, m.PELVIS, 1] < 0.3 and track[:, m.PELVIS, 1].min() > 0.05, (mode, seed)


def test_some_signal_with_straight_arms():
    signals = 0
    for seed in range(80):
        track = m.wave(np.random.default_rng(seed), m.stand(np.random.default_rng(1), 3.2), 0.0, 3.2).solve()
        waving = track[int(0.5 * m.RATE) : int(2.7 * m.RATE)]
        reach = np.linalg.norm(waving[:, [m.LWR, m.RWR]] - waving[:, [m.LSH, m.RSH]], axis=-1)
        swept = np.ptp(waving[:, [m.LWR, m.RWR], 1], axis=0)
        signals += bool((reach.min(0) > 0.45).all() and (swept > 0.4).all())
    assert 3 <= signals <= 40, signals


def test_a_troupe_dances_together(lib):
    seen = [scripts.troupe(np.random.default_rng(seed), m.dance(np.random.default_rng(1), 3.2)) for seed in range(30)]
    assert {len(actors) for actors in seen} == {1, 2, 3, 4}
    for first, *others in seen:
        for other in others:
            assert np.linalg.norm(other[0, m.PELVIS] - first[0, m.PELVIS]) > 0.5, "beside each other"
            alike = [
                np.corrcoef(first[: len(first) - late, wrist, 1], other[late:, m.LWR, 1])[0, 1]
                for wrist in (m.LWR, m.RWR)
                for late in range(int(0.15 * m.RATE) + 1)
            ]
            assert max(alike) > 0.95, "the same, nearly at the same time"


def test_nobody_sits_down_on_the_floor_as_fast_as_one_falls(lib):
    scripted = [scripts.sitting_down(np.random.default_rng(seed), lib, "held") for seed in range(60)]
    floor = [s for s in scripted if s.sources[-1] == "sit" and not s.boxes]
    assert len(floor) > 5
    assert min(s.end - s.onset for s in floor) > 1.2


def test_boxers_face_each_other():
    track, _, _ = m.strike(np.random.default_rng(3), "punching", 4.0, 0.4, (0.0, 1.5, 0.6), 5)
    ring = scripts.Library([m.Take("1", "boxing", "1", "held", m.RATE, track)])
    assert ring.moments["1"], "blows are found in it"
    bouts = [scripts.SCRIPTS["punching"](np.random.default_rng(seed), ring, "held") for seed in range(120)]
    bouts = [b for b in bouts if b.sources == ["1"] and len(b.actors) == 2]
    assert len(bouts) > 10
    for bout in bouts:
        one, other = bout.actors
        at = int(bout.onset * m.RATE)
        apart = other[at, m.PELVIS] - one[at, m.PELVIS]
        assert 0.3 < np.linalg.norm(apart[[0, 2]]) < 1.8
        assert np.cos(m.facing(one[at]) - np.arctan2(apart[0], apart[2])) > 0.5
        assert np.cos(m.facing(other[at]) - np.arctan2(-apart[0], -apart[2])) > 0.5


def speed(track, joint=m.PELVIS):
    """Along the floor, in m/s: [F - 1]."""
    return np.linalg.norm(np.diff(track[:, joint][:, [0, 2]], axis=0), axis=-1) * m.RATE


def test_some_runners_come_to_a_stop(lib):
    scripted = [scripts.running(np.random.default_rng(seed), lib, "held") for seed in range(80)]
    stopped = [s for s in scripted if s.end < scripts.LENGTH]
    assert 10 < len(stopped) < 50
    for script in stopped:
        at = int(script.end * m.RATE)
        assert np.median(speed(script.actors[0])[: at - int(m.RATE / 4)]) > 1.4, "they ran"
        # The last steps may be a walk, of a second at most.
        assert speed(script.actors[0])[at + int(m.RATE) :].max(initial=0) < 0.3, "and stand"


def test_some_run_up_to_what_they_kick(lib):
    scripted = [scripts.SCRIPTS["kicking"](np.random.default_rng(seed), lib, "held") for seed in range(80)]
    ran = [s for s in scripted if len(s.actors) == 1 and speed(s.actors[0])[: int(s.onset * m.RATE)].mean() > 1.7]
    assert 5 < len(ran) < 30


def test_in_some_fights_both_strike(lib):
    both = 0
    for seed in range(60):
        actors = scripts.SCRIPTS["punching"](np.random.default_rng(seed), lib, "held").actors
        hands = [a[:, [m.LWR, m.RWR]] - a[:, [m.CHEST]] for a in actors]
        fast = [np.linalg.norm(np.diff(h, axis=0), axis=-1).max() * m.RATE > 3 for h in hands]
        reached = [np.linalg.norm(h[..., [0, 2]], axis=-1).max() > 0.45 for h in hands]
        both += len(actors) == 2 and all(fast) and all(reached)
    assert 3 < both < 40, both


def test_boxers_strike_again_and_again_and_keep_their_feet():
    counts = []
    for seed in range(30):
        track, hits = m.box(np.random.default_rng(seed), 3.2)
        counts.append(len(hits))
        reach = np.linalg.norm(track[:, [m.LWR, m.RWR]] - track[:, [m.LSH, m.RSH]], axis=-1).max(1)
        long = [reach[int(h * m.RATE) - 6 : int(h * m.RATE) + 7].max() for h in hits]
        assert np.median(long) > 0.4, "arms go out"
        assert reach.min() < 0.36, "and come back"
        feet = track[:, [m.LAN, m.RAN]]
        assert feet[..., 1].max() < 0.2 and np.ptp(feet[..., [0, 2]], axis=0).max() < 1.5
        assert speed(track).max() < 3.0, "no jumps"
    assert min(counts) >= 2 and max(counts) >= 6
    pairs = [s for s in (scripts.bout(np.random.default_rng(seed)) for seed in range(40)) if len(s.actors) == 2]
    assert 5 < len(pairs) < 30
    for script in pairs:
        apart = script.actors[1][0, m.PELVIS] - script.actors[0][0, m.PELVIS]
        assert 0.4 < np.linalg.norm(apart[[0, 2]]) < 1.8
        assert np.cos(m.facing(script.actors[0][0]) - m.facing(script.actors[1][0])) < 0.3, "towards each other"


def test_a_jump_leaves_the_floor_and_returns():
    track, end = m.hop(np.random.default_rng(2), 2.5, 0.5, 0.45)
    feet = track[:, [m.LAN, m.RAN, m.LTO, m.RTO], 1].min(1)
    assert feet.max() > 0.18 and feet[0] < 0.12 and feet[-1] < 0.12 and 1.0 < end < 2.5


def test_bones_keep_their_length():
    track, _, _, _ = m.pick_up(np.random.default_rng(4), 0.3, 1.2, 0.5)
    shin = np.linalg.norm(track[:, m.LKN] - track[:, m.LAN], axis=-1)
    assert shin.min() > 0.4 and shin.max() < 0.45


def test_mirror_twice_is_the_same():
    track = m.stand(np.random.default_rng(1), 1.0).solve()
    assert np.array_equal(m.mirror(m.mirror(track)), track)


@pytest.mark.parametrize("rate", [10, 12, 15, 24, 25, 29.97, 30, 50, 60])
def test_every_tick_comes_once_and_in_order(rate):
    times = np.arange(int(3 * rate)) / rate
    kept = times[render.admitted(times)]
    slots = [render.slot(t) for t in kept]
    assert slots == sorted(set(slots))
    plan = render.ticks(kept)
    assert len(plan) == slots[-1] - slots[0]
    assert all(0 <= pair - shown <= 1 for shown, pair, _ in plan)


def test_constant_speed_gives_the_same_flow_at_any_rate():
    rng, side = np.random.default_rng(0), render.FLOW_SIZE
    wall = cv2.normalize(
        cv2.GaussianBlur(rng.random((side, 4 * side)).astype(np.float32), (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX
    )
    speed = 40.0  # pixels of flow's picture a second: 0.8 of the model's, which is half of its size, per tick

    def picture(t):
        shift = np.array([[1, 0, speed * t - 200.0], [0, 1, 0]])
        return cv2.warpAffine(wall, shift, (side, side), flags=cv2.INTER_LINEAR).astype(np.uint8)

    dis, seen = render.make_dis(), {}
    for rate in (10, 25, 60):
        times = np.arange(int(1.2 * rate)) / rate
        times = times[render.admitted(times)]
        pictures = [picture(t) for t in times]
        values = []
        for _, pair, factor in render.ticks(times):
            flow = render.flow_of(dis, pictures[pair - 1], pictures[pair]) * factor
            values.append(np.median(flow[8:-8, 12:-12, 0]))
        seen[rate] = np.median(values)
    assert seen[25] == pytest.approx(0.8, abs=0.08)
    assert seen[10] == pytest.approx(seen[25], abs=0.1)
    assert seen[60] == pytest.approx(seen[25], abs=0.1)


def test_flow_code():
    flow = np.array([-1.5, -1.0, 0.0, 0.5, 1.0, 1.2]) * render.BOUND
    assert render.encode_flow(flow).tolist() == [-127, -127, 0, 64, 127, 127]


def test_same_seed_same_pixels(lib):
    a, b = (procedural("falling", 5, lib) for _ in range(2))
    for name in ("rgb", "flow", "mask"):
        assert np.array_equal(a[name], b[name]), name
    assert a["meta"] == b["meta"]
    assert not np.array_equal(a["rgb"], procedural("falling", 6, lib)["rgb"])


def test_the_contract_of_a_clip(lib):
    for label in ("waving", "pushing", "nothing"):
        clip = procedural(label, 11, lib)
        assert clip["rgb"].shape == (72, SIZE, SIZE, 3) and clip["rgb"].dtype == np.uint8
        assert clip["flow"].shape == (72, SIZE, SIZE, 2) and clip["flow"].dtype == np.int8
        assert clip["mask"].shape == (9, GRID, GRID) and clip["mask"].dtype == np.uint8
        assert clip["label"] == (LABELS.index(label) if not clip["meta"]["frozen"] else 0)


def test_a_frozen_clip_does_not_move_and_is_nothing(lib):
    clip = render.render_clip(lib, "held", 3, "waving", freeze=True)
    assert clip["label"] == 0 and clip["meta"]["label"] == "nothing" and clip["meta"]["frozen"]
    assert not clip["flow"].any()
    assert (clip["rgb"] == clip["rgb"][0]).all()


def test_a_shard_is_complete_and_not_written_twice(tmp_path, lib, monkeypatch):
    monkeypatch.setattr(render, "SHARD", 2)
    monkeypatch.setattr(render, "_LIBRARY", lib)
    monkeypatch.setattr(render, "label_of", lambda rng: "jumping")
    assert render._shard((tmp_path, "held", 0, "walking")) == 2
    folder = tmp_path / "held" / "shard_00000"
    assert sorted(p.name for p in folder.iterdir()) == ["flow.npy", "label.npy", "mask.npy", "meta.jsonl", "rgb.npy"]
    assert np.load(folder / "label.npy").dtype == np.int64
    lines = [json.loads(line) for line in (folder / "meta.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and {"label", "sources", "fps", "onset", "end", "frozen", "persons"} <= lines[0].keys()
    assert {line["label"] for line in lines} <= {"walking", "nothing"}, "the label asked for, or frozen"
    assert render._shard((tmp_path, "held", 0, "walking")) == 0
    assert [p.name for p in (tmp_path / "held").iterdir()] == ["shard_00000"]


def test_every_label_has_a_script(lib):
    assert list(scripts.SCRIPTS) == LABELS
    for label in LABELS:
        for number in range(6):
            script = scripts.write(np.random.default_rng(number), lib, "held", label)
            for actor in script.actors:
                assert actor.shape == (321, 20, 3) and np.isfinite(actor).all(), (label, number)


def test_mocap_takes_load():
    """Reads the real data where it lies; skipped elsewhere."""
    mocap = Path(__file__).resolve().parents[4] / "shared" / "mocap"
    if not (mocap / "classes.tsv").exists():
        pytest.skip("no motion capture beside the project")
    with tarfile.open(mocap / "bvh_extra.tar.xz") as tar:
        member = next(x for x in tar if x.name.endswith(".bvh"))
        track = m.read_bvh(tar.extractfile(member).read().decode("latin-1"))
    height = np.median(track[:, m.HEAD, 1])
    assert 1.4 < height < 2.0 and track[:, [m.LTO, m.RTO], 1].min() > -0.3


def folders(tmp_path, monkeypatch):
    """Folders with what `sources` asks for; reading them gives one take."""
    (tmp_path / "in").mkdir()
    for name in ("classes.tsv", "a.tar.xz", "animations.glb"):
        (tmp_path / "in" / name).write_text("x")
    track = np.arange(180, dtype=np.float32).reshape(3, 20, 3)
    take = m.Take("12_01", "walking", "12", "held", 60.0, track)
    monkeypatch.setattr(m, "load_takes", lambda *_: [take])
    return tmp_path / "in", take


def test_a_cache_keeps_takes_of_these_files_only(tmp_path, monkeypatch):
    folder, take = folders(tmp_path, monkeypatch)
    cache = tmp_path / "motions.npz"
    m.cached_takes(cache, folder, folder)
    monkeypatch.setattr(m, "load_takes", lambda *_: [])
    (kept,) = m.cached_takes(cache, folder, folder)
    assert np.array_equal(kept.track, take.track)
    assert {**vars(kept), "track": 0} == {**vars(take), "track": 0}
    (folder / "classes.tsv").write_text("another")
    assert m.cached_takes(cache, folder, folder) == []


def test_code_in_a_cache_does_not_run(tmp_path, monkeypatch):
    folder, _ = folders(tmp_path, monkeypatch)

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    plain, packed = tmp_path / "motions.pickle", tmp_path / "motions.npz"
    plain.write_bytes(pickle.dumps(Evil()))
    np.savez(packed, takes=np.array([Evil()], object))
    options = ["--mocap", str(folder), "--animations", str(folder)]
    for cache in (plain, packed):
        for name in ("render", "demo"):
            cached = [name, "--out", str(tmp_path / "out"), "--cache", str(cache), *options]
            assert command.main(cached) == 2
    assert not (tmp_path / "ran").exists()


def test_folders_that_are_not_there(tmp_path, capsys):
    for name in ("render", "demo"):
        options = ["--out", str(tmp_path / "out"), "--mocap", str(tmp_path / "nope"), "--animations", str(tmp_path)]
        assert command.main([name, *options]) == 2
        assert "nope: no such folder" in capsys.readouterr().err
    assert command.main(["render", "--mocap", str(tmp_path), "--animations", str(tmp_path)]) == 2
    assert not (tmp_path / "out").exists()


def test_help_has_an_example():
    parser = argparse.ArgumentParser(epilog=render.__doc__)
    render.add_arguments(parser)
    assert "Example" in parser.format_help()


def test_photographs_stand_behind_people_and_on_surfaces(tmp_path, lib, monkeypatch):
    monkeypatch.setattr(scene, "_PLACES", [])
    monkeypatch.setattr(scene, "_MATERIALS", [])
    plain = procedural("waving", 4, lib)
    for name, colour in (("places", (30, 90, 200)), ("materials", (120, 120, 120))):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), np.full((48, 64, 3), colour, np.uint8))
    scene.photographs(tmp_path)
    for seed in range(20):
        width, height = int(20 + 9 * seed), int(200 - 8 * seed)
        cut = scene.place(np.random.default_rng(seed), width, height)
        assert cut.shape == (height, width, 3)
        assert cut[0, 0, 0] > cut[0, 0, 1] > cut[0, 0, 2], "RGB: the place is orange"
    steps = np.add.outer(np.arange(48), np.arange(64)).astype(np.float32)
    cv2.imwrite(str(tmp_path / "materials" / "a.png"), 40 + steps)
    scene.photographs(tmp_path)
    surfaces = [scene.texture(np.random.default_rng(seed)) for seed in range(20)]
    photographed = [t for t in surfaces if t.shape == steps.shape]
    assert 5 < len(photographed) < 18
    for surface in photographed:
        assert np.corrcoef(surface.ravel(), steps.ravel())[0, 1] > 0.99
        assert surface.mean() == pytest.approx(1, abs=0.01)
    seen = [procedural("waving", seed, lib)["rgb"][0] for seed in range(12)]
    orange = [np.median(p[..., 0]) > 1.5 * np.median(p[..., 2]) for p in seen]
    assert 2 <= sum(orange) <= 10, "some in rooms, some before photographs"
    for name in ("_PLACES", "_MATERIALS"):
        monkeypatch.setattr(scene, name, [])
    assert np.array_equal(procedural("waving", 4, lib)["rgb"], plain["rgb"]), "without them all is as it was"


def test_photographs_that_are_none(tmp_path):
    with pytest.raises(BadInput, match="nope/places: no .jpg or .png in it"):
        scene.photographs(tmp_path / "nope")
    (tmp_path / "p" / "places").mkdir(parents=True)
    (tmp_path / "p" / "places" / "a.jpg").write_text("text")
    with pytest.raises(BadInput, match="a.jpg: not a picture"):
        scene.photographs(tmp_path / "p")
