//! 25 frames a second by timestamp, whatever the source's rate: which picture becomes which tick.
//!
//! Tick `k` lies at `k / 25` s of the camera's time. A picture belongs to the tick nearest to its timestamp. Several
//! pictures for one tick: the first stays, the others are dropped. No picture for a tick: the nearer of the two
//! pictures around it is repeated, and the flow between those two distinct pictures is spread evenly over the ticks
//! from one to the other, so that a repeated picture gives neither zero flow nor a jump after it. The renders that
//! models are trained on go through the same rule.

use std::time::Duration;

/// Ticks a second: the rate of the paper's videos.
pub const FPS: u64 = 25;

/// Two pictures that lie further apart than this are not one motion: what follows is a cut. It lets a camera of two
/// pictures a second pass.
pub const LONGEST_STEP: Duration = Duration::from_millis(1000);

/// What becomes of a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Admission {
    /// The first picture, or the first one after a cut: a frame of its own, with no flow before it. `lost` ticks lie
    /// between the last frame and this one.
    Start { lost: u64 },
    /// Its tick has a picture already: drop it.
    Drop,
    /// The next `ticks` frames: the first `repeats` of them show the picture before, the others this one. Each has the
    /// flow from the picture before to this one, times `scale`.
    Ticks { ticks: u64, repeats: u64, scale: f32 },
}

/// The rule, applied to one camera's timestamps.
#[derive(Debug, Default)]
pub struct Cadence {
    /// Time and tick of the last picture that was not dropped.
    last: Option<(Duration, u64)>,
}

impl Cadence {
    pub fn admit(&mut self, time: Duration) -> Admission {
        let tick = tick_at(time);
        let Some((last_time, last_tick)) = self.last else {
            self.last = Some((time, tick));
            return Admission::Start { lost: 0 };
        };
        // A timestamp that jumps back (a looped file, a camera that set its clock) begins anew as a cut does; how long
        // it took nobody knows.
        let Some(step) = time.checked_sub(last_time) else {
            self.last = Some((time, tick));
            return Admission::Start { lost: 0 };
        };
        if tick == last_tick {
            return Admission::Drop;
        }
        self.last = Some((time, tick));
        let ticks = tick - last_tick;
        if step > LONGEST_STEP {
            return Admission::Start { lost: ticks - 1 };
        }
        // The tick in the middle goes to the later picture: it is the newer one.
        let repeats = (last_tick + 1..tick)
            .filter(|k| tick_time(*k).saturating_sub(last_time) < time.saturating_sub(tick_time(*k)))
            .count() as u64;
        Admission::Ticks { ticks, repeats, scale: (1.0 / FPS as f64 / step.as_secs_f64()) as f32 }
    }
}

fn tick_at(time: Duration) -> u64 {
    (time.as_nanos() * u128::from(FPS) + 500_000_000).div_euclid(1_000_000_000) as u64
}

fn tick_time(tick: u64) -> Duration {
    Duration::from_nanos(tick * (1_000_000_000 / FPS))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A camera at `fps` for `seconds` that sees a point move at `speed` pixels a second: what each tick shows (the
    /// time of its picture) and the flow it gets.
    fn watch(fps: f64, seconds: f64, speed: f64) -> Vec<(f64, f32)> {
        let mut cadence = Cadence::default();
        let mut frames = Vec::new();
        let mut before = 0.0;
        for i in 0..(fps * seconds).round() as u64 {
            let t = i as f64 / fps;
            match cadence.admit(Duration::from_secs_f64(t)) {
                Admission::Start { lost } => {
                    assert_eq!(lost, 0);
                    frames.push((t, 0.0));
                }
                Admission::Drop => continue,
                Admission::Ticks { ticks, repeats, scale } => {
                    let flow = ((t - before) * speed) as f32 * scale;
                    frames.extend((0..ticks).map(|k| (if k < repeats { before } else { t }, flow)));
                }
            }
            before = t;
        }
        frames
    }

    #[test]
    fn any_rate_becomes_25_and_a_steady_motion_keeps_its_speed() {
        for fps in [2.0, 7.0, 10.0, 12.5, 15.0, 18.0, 24.0, 25.0, 29.97, 30.0, 50.0, 60.0, 120.0] {
            let frames = watch(fps, 8.0, 100.0);
            assert!((frames.len() as f64 - 200.0).abs() <= 25.0 / fps + 1.0, "{fps} fps gave {} frames", frames.len());
            for (k, (shown, flow)) in frames.iter().enumerate().skip(1) {
                // 100 px/s are 4 px a tick.
                assert!((flow - 4.0).abs() < 1e-3, "{fps} fps, tick {k}: flow {flow}");
                let late = (shown - k as f64 / 25.0).abs();
                assert!(late <= (0.5 / fps).max(0.5 / 25.0) + 1e-6, "{fps} fps, tick {k} shows {shown}");
            }
        }
    }

    #[test]
    fn at_25_every_picture_is_one_frame() {
        let mut cadence = Cadence::default();
        assert_eq!(cadence.admit(Duration::ZERO), Admission::Start { lost: 0 });
        for k in 1..100u64 {
            let Admission::Ticks { ticks: 1, repeats: 0, scale } = cadence.admit(Duration::from_millis(40 * k)) else {
                panic!("tick {k}")
            };
            assert!((scale - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn jitter_of_half_a_tick_loses_nothing_but_counts_honestly() {
        let mut cadence = Cadence::default();
        let mut frames = 0;
        let mut state = 7u64;
        for k in 0..1000u64 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let jitter = (state >> 33) % 19;
            match cadence.admit(Duration::from_millis(40 * k + jitter)) {
                Admission::Start { .. } => frames += 1,
                Admission::Drop => panic!("dropped at {k}"),
                Admission::Ticks { ticks, .. } => frames += ticks,
            }
        }
        assert_eq!(frames, 1000);
    }

    #[test]
    fn a_pause_is_a_cut_with_its_ticks_counted() {
        let mut cadence = Cadence::default();
        cadence.admit(Duration::from_millis(0));
        cadence.admit(Duration::from_millis(40));
        assert_eq!(cadence.admit(Duration::from_millis(2040)), Admission::Start { lost: 49 });
        assert!(matches!(cadence.admit(Duration::from_millis(2080)), Admission::Ticks { ticks: 1, .. }));
    }

    #[test]
    fn time_that_jumps_back_begins_anew() {
        let mut cadence = Cadence::default();
        cadence.admit(Duration::from_secs(10));
        assert_eq!(cadence.admit(Duration::from_secs(1)), Admission::Start { lost: 0 });
        assert!(matches!(cadence.admit(Duration::from_millis(1040)), Admission::Ticks { ticks: 1, .. }));
    }
}
