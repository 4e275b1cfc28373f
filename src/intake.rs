//! Pictures in, frames out: the part of a frame's path that one camera has to itself, up to the ring. The daemon, whole
//! clips and the benchmark all go through here.

use std::time::{Duration, Instant};

use crate::{
    cadence::{Admission, Cadence},
    error::Result,
    flow::{
        Flow,
        cpu::{CpuFlow, average_down},
    },
    frame::{Frame, Picture, View},
    record::frames::Frames,
    ring::WINDOW,
    scale::{GLANCE, Region, Scaled, Scaler, ViewSpec},
    still::{Look, Stillness},
};

/// What comes out.
pub enum Output<'a> {
    /// The next frame; whoever takes it may swap its buffers for others of the same sizes.
    Frame(&'a mut Frame),
    /// A cut: this many ticks never came, and the next frame has no motion before it.
    Cut { lost: u64 },
}

/// Pictures and frames counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pictures that the source gave.
    pub pictures: u64,
    /// Pictures that the source had to drop because the newest wins.
    pub dropped_at_source: u64,
    /// Pictures left out since their tick had one already.
    pub dropped_to_rate: u64,
    /// Frames made.
    pub frames: u64,
    /// Frames that show a picture once more.
    pub repeated: u64,
    /// Frames that never came while the source was away, or paused.
    pub away: u64,
}

/// What the last picture took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    pub scale: Duration,
    /// Zero for a picture that had none before it.
    pub flow: Duration,
}

/// While nothing moves a picture is scaled once in so many frames: they are all alike, but for the light.
const REFRESH: u64 = 25;

/// What tells still pictures, and the glances of the last two.
struct Glances {
    stillness: Stillness,
    before: Vec<u8>,
    now: Vec<u8>,
    /// Frames since a picture was scaled.
    unscaled: u64,
}

/// Rate, scaling and flow of one camera.
pub struct Intake {
    cadence: Cadence,
    scaler: Scaler,
    specs: Vec<ViewSpec>,
    /// One estimator and its output for each view that has flow.
    flow: Vec<Option<(CpuFlow, Vec<f32>)>>,
    /// Where still pictures are to be told.
    still: Option<Glances>,
    before: Vec<Scaled>,
    now: Vec<Scaled>,
    frame: Frame,
    /// Ticks that went by while the source was being opened anew.
    away: u64,
    /// Ticks that never came, all of them.
    lost: u64,
    record: Option<Frames>,
    counts: Counts,
    spent: Spent,
}

impl Intake {
    pub fn new(specs: &[ViewSpec], region: Region) -> Result<Self> {
        let mut flow = Vec::new();
        for spec in specs {
            flow.push(match (spec.flow, spec.luma_size()) {
                (Some(method), Some(size)) => Some((CpuFlow::new(method, size)?, vec![0.0; size[0] * size[1] * 2])),
                _ => None,
            });
        }
        Ok(Intake {
            cadence: Cadence::default(),
            scaler: Scaler::new(specs.to_vec(), region),
            specs: specs.to_vec(),
            flow,
            still: None,
            before: Vec::new(),
            now: Vec::new(),
            frame: Frame { number: 0, still: 0, views: vec![View::default(); specs.len()] },
            away: 0,
            lost: 0,
            record: None,
            counts: Counts::default(),
            spent: Spent::default(),
        })
    }

    /// Frames tell for how long nothing has moved. Once that is a window's length their flow is zero and estimated no more,
    /// and they show the same picture for a while.
    pub fn telling_still(mut self, on: bool) -> Self {
        let (before, now) = (Vec::new(), Vec::new());
        self.still = on.then(|| Glances { stillness: Stillness::new(GLANCE), before, now, unscaled: 0 });
        self
    }

    /// Keeps the pictures that become frames.
    pub fn recording(mut self, frames: Option<Frames>) -> Self {
        self.record = frames;
        self
    }

    pub fn spent(&self) -> Spent {
        self.spent
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Tells that the source was opened anew: its time starts again, and `lost` ticks went by meanwhile. Its next picture
    /// comes behind a cut.
    pub fn reopened(&mut self, lost: u64) {
        self.cadence = Cadence::default();
        self.away = lost;
    }

    /// Takes the source's next picture and emits the frames that it completes, none or several.
    pub fn take(&mut self, picture: &Picture, emit: &mut dyn FnMut(Output)) -> Result<()> {
        self.counts.pictures += 1;
        self.counts.dropped_at_source += picture.dropped;
        let admission = self.cadence.admit(picture.time);
        if admission == Admission::Drop {
            self.counts.dropped_to_rate += 1;
            return Ok(());
        }
        let began = Instant::now();
        let (look, scaled) = self.look(picture, admission)?;
        let rests = look.still >= WINDOW as u64 && !look.changed;
        if scaled {
            std::mem::swap(&mut self.before, &mut self.now);
            self.scaler.scale(picture, &mut self.now)?;
        }
        self.spent = Spent { scale: began.elapsed(), flow: Duration::ZERO };
        if let Admission::Start { lost } = admission
            && self.counts.frames > 0
        {
            self.lost += lost + self.away;
        }
        if let Some(frames) = &mut self.record {
            frames.take(picture, admission, self.counts.frames + self.lost);
        }
        match admission {
            Admission::Drop => {}
            Admission::Start { lost } => {
                let away = std::mem::take(&mut self.away);
                self.counts.away += away;
                let lost = lost + away;
                if self.counts.frames > 0 {
                    emit(Output::Cut { lost });
                }
                self.frame.still = 0;
                self.fill(false, 0.0);
                emit(Output::Frame(&mut self.frame));
                self.counts.frames += 1;
            }
            Admission::Ticks { ticks, repeats, scale } => {
                let began = Instant::now();
                let (scale, repeats) = if rests { (0.0, 0) } else { (scale, repeats) };
                for ((flow, before), now) in self.flow.iter_mut().zip(&self.before).zip(&self.now) {
                    if let Some((estimator, out)) = flow
                        && !rests
                    {
                        estimator.step(&before.luma, &now.luma, out)?;
                    }
                }
                self.spent.flow = began.elapsed();
                for tick in 0..ticks {
                    self.frame.still = look.still.saturating_sub(ticks - 1 - tick);
                    self.fill(tick < repeats, scale);
                    emit(Output::Frame(&mut self.frame));
                }
                self.counts.frames += ticks;
                self.counts.repeated += ticks - 1;
            }
        }
        Ok(())
    }

    /// What the picture shows beside the one before, and whether it is to be scaled: a picture like the last one that was
    /// needs not be.
    fn look(&mut self, picture: &Picture, admission: Admission) -> Result<(Look, bool)> {
        let moves = Look { still: 0, changed: true };
        let Some(Glances { stillness, before, now, unscaled }) = &mut self.still else {
            return Ok((moves, true));
        };
        std::mem::swap(before, now);
        self.scaler.glance(picture, now)?;
        let Admission::Ticks { ticks, .. } = admission else {
            stillness.begin(now);
            *unscaled = 0;
            return Ok((moves, true));
        };
        let look = stillness.look(before, now, ticks);
        *unscaled += ticks;
        let scaled = look.still < WINDOW as u64 || look.changed || *unscaled >= REFRESH;
        if scaled {
            *unscaled = 0;
        }
        Ok((look, scaled))
    }

    /// Writes the staging frame: the picture now or the one before, and the last flow times `scale` (0: none).
    fn fill(&mut self, repeat: bool, scale: f32) {
        let shown = if repeat { &self.before } else { &self.now };
        for (((view, spec), scaled), flow) in self.frame.views.iter_mut().zip(&self.specs).zip(shown).zip(&self.flow) {
            if spec.rgb {
                view.rgb.clear();
                view.rgb.extend_from_slice(&scaled.rgb);
            }
            if let (Some((_, estimated)), Some(method)) = (flow, spec.flow) {
                view.flow.resize(spec.size[0] * spec.size[1] * 2, 0.0);
                match scale {
                    0.0 => view.flow.fill(0.0),
                    _ => average_down(estimated, method.upscale, spec.size[0], scale, &mut view.flow),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        frame::{Pixels, Plane},
        model::{Fit, FlowMethod},
    };

    const SIZE: usize = 64;

    fn specs() -> Vec<ViewSpec> {
        let flow = Some(FlowMethod { upscale: 2, ..FlowMethod::default() });
        vec![ViewSpec { size: [SIZE, SIZE], fit: Fit::Squeeze, rgb: true, flow }]
    }

    /// A 256x256 picture of a texture that moves right at 100 px/s, at time `t`.
    fn moving(t: f64) -> Vec<u8> {
        let dx = 100.0 * t;
        (0..256 * 256)
            .flat_map(|i| {
                let (x, y) = ((i % 256) as f64 - dx, (i / 256) as f64);
                let v = (x * 0.09).sin() + (y * 0.07).cos() + ((x + y) * 0.05).sin() + ((x - 2.0 * y) * 0.04).cos();
                [(128.0 + v * 30.0) as u8; 3]
            })
            .collect()
    }

    fn run(times: impl Iterator<Item = f64>, still: bool) -> (Vec<Frame>, Counts, Vec<u64>) {
        let mut intake = Intake::new(&specs(), Region::WHOLE).unwrap();
        let (mut frames, mut cuts) = (Vec::new(), Vec::new());
        for t in times {
            let data = moving(if still { 0.0 } else { t });
            let picture = Picture {
                width: 256,
                height: 256,
                time: Duration::from_secs_f64(t),
                dropped: 0,
                pixels: Pixels::Rgb(Plane { data: &data, stride: 256 * 3 }),
            };
            intake
                .take(&picture, &mut |o| match o {
                    Output::Frame(f) => frames.push(f.clone()),
                    Output::Cut { lost } => cuts.push(lost),
                })
                .unwrap();
        }
        (frames, intake.counts(), cuts)
    }

    fn mean_flow(frame: &Frame) -> f32 {
        let inside = |i: &usize| (16..48).contains(&(i % SIZE)) && (16..48).contains(&(i / SIZE));
        let dx: Vec<f32> = (0..SIZE * SIZE).filter(inside).map(|i| frame.views[0].flow[i * 2]).collect();
        dx.iter().sum::<f32>() / dx.len() as f32
    }

    #[test]
    fn one_motion_has_one_flow_at_every_rate() {
        // 100 px/s of a 256 px picture are 1 px a tick at 64.
        for fps in [10.0, 15.0, 25.0, 30.0, 60.0] {
            let (frames, counts, _) = run((0..(fps as usize)).map(|i| i as f64 / fps), false);
            assert_eq!(counts.frames, frames.len() as u64);
            for (k, frame) in frames.iter().enumerate().skip(1) {
                let flow = mean_flow(frame);
                assert!((flow - 1.0).abs() < 0.15, "{fps} fps, frame {k}: {flow} px");
            }
        }
    }

    #[test]
    fn repeats_and_drops_are_counted() {
        let (frames, counts, _) = run((0..10).map(|i| f64::from(i) / 10.0), false);
        assert_eq!((counts.pictures, counts.dropped_to_rate), (10, 0));
        assert_eq!(counts.repeated, frames.len() as u64 - 10);
        let (frames, counts, _) = run((0..60).map(|i| f64::from(i) / 60.0), false);
        assert_eq!(counts.repeated, 0);
        assert_eq!(counts.dropped_to_rate, 60 - frames.len() as u64);
    }

    #[test]
    fn a_still_picture_has_no_flow() {
        let (frames, ..) = run((0..20).map(|i| f64::from(i) / 10.0), true);
        assert!(frames.iter().all(|f| f.views[0].flow.iter().all(|v| v.abs() < 1e-3)));
        assert!(frames.iter().all(|f| f.views[0].rgb == frames[0].views[0].rgb));
    }

    #[test]
    fn a_pause_is_a_cut_and_no_motion_is_seen_across_it() {
        let times = (0..5).map(|i| f64::from(i) / 25.0).chain((0..5).map(|i| 10.0 + f64::from(i) / 25.0));
        let (frames, _, cuts) = run(times, false);
        assert_eq!(cuts, [245]);
        assert!(frames[5].views[0].flow.iter().all(|v| *v == 0.0));
        assert!((mean_flow(&frames[6]) - 1.0).abs() < 0.15);
    }

    #[test]
    fn a_source_that_was_opened_anew_is_one_cut() {
        let mut intake = Intake::new(&specs(), Region::WHOLE).unwrap();
        let data = moving(0.0);
        let mut seen = Vec::new();
        let mut take = |intake: &mut Intake, millis: u64| {
            let pixels = Pixels::Rgb(Plane { data: &data, stride: 256 * 3 });
            let time = Duration::from_millis(millis);
            let picture = Picture { width: 256, height: 256, time, dropped: 0, pixels };
            intake
                .take(&picture, &mut |o| {
                    seen.push(match o {
                        Output::Frame(_) => None,
                        Output::Cut { lost } => Some(lost),
                    });
                })
                .unwrap();
        };
        take(&mut intake, 5000);
        intake.reopened(75);
        take(&mut intake, 0);
        take(&mut intake, 40);
        assert_eq!(seen, [None, Some(75), None, None]);
    }

    #[test]
    fn while_nothing_moves_flow_is_zero_and_the_picture_is_scaled_now_and_then() {
        // Moves for 10 frames, is still for 190 (brighter by a level each 40), moves again. At 12.5 fps as well.
        for step in [1, 2] {
            let mut intake = Intake::new(&specs(), Region::WHOLE).unwrap().telling_still(true);
            let (mut frames, mut scaled) = (Vec::new(), 0);
            for k in (0..220u64).step_by(step) {
                let place = if k < 10 {
                    k
                } else if k < 200 {
                    10
                } else {
                    k - 190
                };
                let mut data = moving(place as f64 / 25.0);
                data.iter_mut().for_each(|v| *v += (k / 40) as u8);
                let pixels = Pixels::Rgb(Plane { data: &data, stride: 256 * 3 });
                let time = Duration::from_millis(40 * k);
                let picture = Picture { width: 256, height: 256, time, dropped: 0, pixels };
                let before = intake.now.clone();
                intake
                    .take(&picture, &mut |o| match o {
                        Output::Frame(f) => frames.push(f.clone()),
                        Output::Cut { .. } => panic!("a cut"),
                    })
                    .unwrap();
                scaled += usize::from((100..200).contains(&k) && intake.now != before);
            }
            assert!((2..=4).contains(&scaled), "{scaled} of 100 were scaled");
            assert!(frames[..10].iter().all(|f| f.still == 0));
            let still: Vec<u64> = frames[150..200].iter().map(|f| f.still).collect();
            assert!(still[0] > WINDOW as u64 && still.windows(2).all(|w| w[1] == w[0] + 1), "{still:?}");
            assert!(frames[150..200].iter().all(|f| f.views[0].flow.iter().all(|v| *v == 0.0)));
            // It moves on with the very picture that moves, at its own speed.
            let first = frames[200..].iter().position(|f| mean_flow(f) > 0.5).unwrap();
            assert!(first <= step, "{first}");
            assert!((mean_flow(&frames[203]) - 1.0).abs() < 0.2, "{}", mean_flow(&frames[203]));
            assert!(frames[204..].iter().all(|f| f.still < 4));
        }
    }

    #[test]
    fn frames_of_what_moves_are_the_same_whether_still_ones_are_told_or_not() {
        let frames = |on: bool| {
            let mut intake = Intake::new(&specs(), Region::WHOLE).unwrap().telling_still(on);
            let mut frames = Vec::new();
            for k in 0..80u64 {
                let data = moving(k as f64 / 25.0);
                let pixels = Pixels::Rgb(Plane { data: &data, stride: 256 * 3 });
                let time = Duration::from_millis(40 * k);
                let picture = Picture { width: 256, height: 256, time, dropped: 0, pixels };
                let mut emit = |o: Output| {
                    if let Output::Frame(f) = o {
                        frames.push(f.clone());
                    }
                };
                intake.take(&picture, &mut emit).unwrap();
            }
            frames
        };
        assert_eq!(frames(false), frames(true));
    }
}
