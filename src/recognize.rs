//! The heart: hops in, streams run, scores fused, decided, journalled. One thread for all cameras; whichever hop waits
//! longest is next. Where the machine cannot keep up, [`load`] says what to leave out.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    camera::Camera,
    clip,
    config::Mode,
    decide::{self, Decider, HopScores},
    error::{Error, Kind, Result},
    event::Event,
    inference::{self, Hop, Lane, LoadOptions, Network, Progress, Reach},
    input,
    load::{self, Load, Move, Relief, Standing},
    metrics::{Timing, timing},
    model::{Decision, Model},
    ring::{Bell, Fate, Rhythm, Span, Step, WINDOW},
    scale,
    still::Rest,
    supervise::Supervisor,
    tell::{About, Engine, Given, Seen, Teller},
    time::{Shutdown, Wall},
};

/// Where events go: the journal first, then whoever shows them.
pub trait Sink {
    fn event(&mut self, event: &mut Event) -> Result<()>;

    /// What a camera's decider is given, before the events that come of it.
    fn given(&mut self, _camera: Lane, _engine: &Engine, _given: &Given) {}

    /// Other settings hold from the next decision on.
    fn retuned(&mut self, _events: &Decision) {}

    /// The recognizer goes round: at least ten times a second, or once a hop where that takes longer.
    fn beat(&mut self) {}
}

/// What stands in every event and does not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct Identity {
    pub device: String,
    pub mode: Mode,
    pub hop: usize,
}

pub struct Recognizer<'a> {
    model: &'a Model,
    backends: &'a [String],
    network: Box<dyn Network>,
    backend: &'static str,
    reach: Reach,
    /// Frames of the model's window.
    window: usize,
    identity: Identity,
    about: About,
    engine: Engine,
    spent: Spent,
    lanes: Vec<LaneState>,
    view_of_stream: Vec<usize>,
    names: Vec<String>,
    hop: Hop,
    scores: decide::Scores,
    load: Load,
    standing: Arc<Mutex<Standing>>,
    /// The stream that is left out first.
    weaker: usize,
    doubled: Doubled,
    /// How the cameras' rings hand out their frames.
    rhythm: Rhythm,
    supervisor: Supervisor,
    wall: Wall,
    loader: Loader,
    /// When the network was last loaded again.
    rebuilt: Option<Instant>,
    /// Hops in a row whose scores were no numbers.
    unusable: u32,
    /// Deciders with new settings, one a camera.
    retunes: Option<Receiver<Decision>>,
}

/// [`inference::load_with`], or in a test what fails as a device does.
type Loader = fn(&Model, &[String], &LoadOptions) -> Result<(Box<dyn Network>, &'static str)>;

/// A network that fails again within this time is not helped by being loaded again.
const AGAIN: Duration = Duration::from_secs(60);

/// So many hops in a row without usable scores, and the network is loaded again.
const UNUSABLE: u32 = 3;

/// The network that is compiled for hops of twice as many frames.
enum Doubled {
    /// The mode needs none, or can't have one.
    Never,
    /// Not asked for yet.
    Possible,
    Loading,
    There(Box<dyn Network>, Hop),
}

struct LaneState {
    camera: Arc<Camera>,
    teller: Teller,
    tally: Tally,
    last_frame: u64,
    progress: Progress,
    rest: Rest,
    /// The scores that stand while nothing moves.
    held: decide::Scores,
    /// A hop was left out since the last one.
    degraded: bool,
    /// Whether its state is in the network for doubled hops.
    on_doubled: bool,
    /// Whether the last hop was made of all streams.
    whole: bool,
    /// A camera and no recording: the last hop could have been left out.
    live: bool,
    /// What was open when its camera was paused is closed.
    paused: bool,
    ended: bool,
}

/// How a hop is made.
#[derive(Clone, Copy)]
struct Way {
    /// By the network that is compiled for twice as many frames.
    on_doubled: bool,
    /// With all streams.
    whole: bool,
    /// Of a camera, that could have left it out.
    live: bool,
}

/// Hops made and left out, and frames lost, of one camera.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub hops: u64,
    /// Hops left out as nothing moved.
    pub skipped: u64,
    /// Cuts, and the frames in no hop at them.
    pub gaps: u64,
    pub lost: u64,
    /// Hops left out because the machine could not keep up, and hops made without one of the streams.
    pub left_out: u64,
    pub partial: u64,
}

/// What hops took, for whoever shows it.
#[derive(Debug, Clone)]
pub struct Spent {
    /// Frames to tensors.
    pub input: Timing,
    /// By the stream's name.
    pub streams: Vec<(String, Timing)>,
    /// Fused and decided, events on disk.
    pub decide: Timing,
    /// What a hop had waited for when it was begun, and all of it until its events were told; of cameras.
    pub waited: Timing,
    pub total: Timing,
}

impl<'a> Recognizer<'a> {
    /// Loads the model.
    pub fn new(model: &'a Model, backends: &'a [String], identity: Identity) -> Result<Self> {
        let mut supervisor = Supervisor::default();
        let load = || inference::load_with(model, backends, &options(&identity));
        let (network, backend) = supervisor.patiently("loading the model", load)?;
        Ok(Recognizer { supervisor, ..Recognizer::with(model, backends, identity, network, backend) })
    }

    fn with(
        model: &'a Model,
        backends: &'a [String],
        identity: Identity,
        network: Box<dyn Network>,
        backend: &'static str,
    ) -> Self {
        let (_, view_of_stream) = scale::views(&model.manifest);
        let streams = &model.manifest.streams;
        let weight = |i: usize| model.manifest.fusion.weights.get(&streams[i].name).copied().unwrap_or(1.0);
        let hop = identity.hop;
        let (doubled, work) = match identity.mode {
            // Every second hop is not made.
            Mode::Dense => (Doubled::Never, Some(0.5)),
            // Measured, see docs/performance.md: the hop of 16 takes two thirds of two hops of 8, and three quarters.
            Mode::Window if 2 * hop <= WINDOW => (Doubled::Possible, Some(0.67)),
            Mode::Carried if doubles(model, network.as_ref(), hop) => (Doubled::Possible, Some(0.77)),
            // The work is that of the frames: 7 to 13 % less is not worth a second network.
            _ => (Doubled::Never, None),
        };
        let load = Load::new(identity.mode, hop, streams.len(), work);
        let rhythm = rhythm(model, network.as_ref(), &identity);
        let mut recognizer = Recognizer {
            about: About::new(&identity.device, model, identity.mode, identity.hop),
            engine: Engine { backend: backend.into(), precision: String::new() },
            spent: Spent {
                input: timing(),
                streams: streams.iter().map(|s| (s.name.clone(), timing())).collect(),
                decide: timing(),
                waited: timing(),
                total: timing(),
            },
            standing: Arc::new(Mutex::new(load.standing())),
            load,
            // Of equals the last.
            weaker: (0..streams.len()).rev().min_by(|&a, &b| weight(a).total_cmp(&weight(b))).unwrap_or(0),
            doubled,
            model,
            backends,
            hop: Hop::of(network.as_ref(), streams.len()),
            reach: network.reach(),
            window: clip::window(model),
            network,
            backend,
            identity,
            lanes: Vec::new(),
            view_of_stream,
            names: streams.iter().map(|s| s.name.clone()).collect(),
            scores: decide::Scores::default(),
            rhythm,
            supervisor: Supervisor::default(),
            wall: Wall::default(),
            loader: inference::load_with,
            rebuilt: None,
            unusable: 0,
            retunes: None,
        };
        recognizer.engine.precision = recognizer.precision();
        recognizer
    }

    /// How the cameras' rings must hand out their frames.
    pub fn rhythm(&self) -> Rhythm {
        self.rhythm
    }

    /// Takes new decision settings from there while it runs.
    pub fn retuned_by(&mut self, retunes: Receiver<Decision>) {
        self.retunes = Some(retunes);
    }

    /// What is left out now because the machine cannot keep up, for whoever shows it.
    pub fn standing(&self) -> Arc<Mutex<Standing>> {
        self.standing.clone()
    }

    /// What hops take.
    pub fn spent(&self) -> Spent {
        self.spent.clone()
    }

    /// Frames by which scores look further back than those of a window.
    pub fn lag(&self) -> f32 {
        self.reach.lag
    }

    /// Watches one more camera.
    pub fn add(&mut self, camera: Arc<Camera>, decider: Decider) {
        self.lanes.push(LaneState {
            teller: Teller::new(
                &camera.id,
                camera.epoch,
                decider.looking_back(self.reach.lag),
                self.model.labels.len(),
            ),
            tally: Tally::default(),
            camera,
            last_frame: 0,
            progress: Progress::default(),
            rest: Rest::default(),
            held: decide::Scores::default(),
            degraded: false,
            on_doubled: false,
            whole: true,
            live: false,
            paused: false,
            ended: false,
        });
    }

    pub fn backend(&self) -> &'static str {
        self.backend
    }

    /// The precisions of the streams' files, e.g. `f32` or `int8+f32`.
    pub fn precision(&self) -> String {
        let mut names: Vec<&str> = self.network.precision().iter().map(|p| p.name()).collect();
        names.dedup();
        names.join("+")
    }

    pub fn tally(&self) -> Vec<Tally> {
        self.lanes.iter().map(|l| l.tally).collect()
    }

    /// Works until every camera has ended, or until shutdown; what is open then is closed.
    pub fn run(&mut self, bell: &Bell, shutdown: &Shutdown, sink: &mut dyn Sink) -> Result<()> {
        let began = Instant::now();
        let model = self.model;
        thread::scope(|scope| {
            let mut loaded: Option<Receiver<Result<Box<dyn Network>>>> = None;
            while self.lanes.iter().any(|l| !l.ended) && !shutdown.is_set() {
                self.supervisor.alive();
                sink.beat();
                if let Some(events) = self.retunes.as_ref().and_then(|r| r.try_iter().last()) {
                    let decider = Decider::new(model, &events, self.identity.hop)?;
                    sink.retuned(&events);
                    self.lanes.iter_mut().for_each(|l| l.teller.retune(decider.clone()));
                }
                for lane in 0..self.lanes.len() {
                    self.pause(lane, sink)?;
                }
                let waiting = |(i, l): (usize, &LaneState)| Some((l.camera.ring.waiting_since()?, i));
                let oldest = self.lanes.iter().enumerate().filter(|(_, l)| !l.ended).filter_map(waiting).min();
                match oldest {
                    Some((_, lane)) => self.advance(lane, began, sink)?,
                    None => {
                        // Closed rings have nothing waiting: they tell of their end when asked.
                        for lane in 0..self.lanes.len() {
                            if !self.lanes[lane].ended {
                                self.advance(lane, began, sink)?;
                            }
                        }
                        let told = self.load.idle(began.elapsed());
                        self.tell(told);
                        bell.wait(Duration::from_millis(100));
                    }
                }
                if matches!(self.doubled, Doubled::Possible) && self.load.relief().doubled {
                    // It takes seconds, so beside the hops, and only where it is needed.
                    self.doubled = Doubled::Loading;
                    let (tell, told) = mpsc::channel();
                    let options = LoadOptions { hop: 2 * self.identity.hop, ..options(&self.identity) };
                    // The same one: states go from one to the other.
                    let (order, loader) = ([self.backend.to_owned()], self.loader);
                    scope.spawn(move || tell.send(loader(model, &order, &options).map(|(n, _)| n)));
                    loaded = Some(told);
                }
                if let Some(network) = loaded.as_ref().and_then(|told| told.try_recv().ok()) {
                    loaded = None;
                    self.has_doubled(network);
                }
            }
            for lane in 0..self.lanes.len() {
                self.finish(lane, sink)?;
            }
            Ok(())
        })
    }

    fn has_doubled(&mut self, network: Result<Box<dyn Network>>) {
        let (model, hop, shown) = (self.model, 2 * self.identity.hop, self.rhythm.window);
        let network = network.and_then(|network| match inference::rhythm(model, network.as_ref(), hop).window {
            takes if takes > shown => Err(Error::internal(format!("it takes {takes} frames of {shown}"))),
            _ => Ok(network),
        });
        match network {
            Ok(network) => {
                let hop = Hop::of(network.as_ref(), self.names.len());
                self.doubled = Doubled::There(network, hop);
            }
            Err(e) => {
                log::warn!("a hop of {} frames can't be had: {e}", 2 * self.identity.hop);
                self.doubled = Doubled::Never;
                self.load.never_doubled();
            }
        }
    }

    /// Tells of what is left out from now on.
    fn tell(&mut self, told: Option<Move>) {
        let Some(told) = told else { return };
        let standing = self.load.standing();
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
        match told {
            Move::Begun(relief) => log::warn!("this machine cannot keep up with its cameras: {relief}"),
            Move::Changed(relief) => log::info!("to keep up with its cameras: {relief}"),
            Move::Over(after) => log::warn!("this machine keeps up again, after {:.0} s", after.as_secs_f32()),
        }
    }

    /// How many frames of a camera its turn lasts.
    fn slot(&self, relief: Relief) -> u64 {
        let hop = self.identity.hop as u64 * if relief.doubled { 2 } else { 1 };
        match self.identity.mode {
            // The window is computed whole, whatever was before it.
            Mode::Dense => hop,
            // The first hop of a turn costs a whole window, or is one of many that see the cut: half of a turn is spent
            // by then at the most.
            _ => (2 * self.reach.warm_after.max(self.window) as u64).next_multiple_of(hop),
        }
    }

    /// Takes one step of one camera.
    fn advance(&mut self, lane: usize, began: Instant, sink: &mut dyn Sink) -> Result<()> {
        let result = self.try_advance(lane, began, sink);
        let LaneState { camera, tally, .. } = &self.lanes[lane];
        camera.status(|s| s.tally = *tally);
        result
    }

    fn try_advance(&mut self, lane: usize, began: Instant, sink: &mut dyn Sink) -> Result<()> {
        let relief = self.load.relief();
        let slot = self.slot(relief);
        let state = &self.lanes[lane];
        let hop = self.identity.hop as u64;
        // A camera that shows nothing moving costs nothing: there is nothing to save.
        let resting = state.rest.is_resting();
        let by_two = relief.doubled
            && !resting
            && match (&self.doubled, self.identity.mode) {
                (_, Mode::Dense) | (Doubled::There(..), Mode::Window) => true,
                // Behind a cut, the first hop is one of its own.
                (Doubled::There(..), _) => state.progress.last().is_some(),
                _ => false,
            };
        let last = state.progress.last();
        let due = state.camera.ring.due(|span| {
            if !resting && !load::has_turn(lane, span.last, slot, relief.turns) {
                Fate::LeftOut
            } else if by_two && last.is_some_and(|last| span.last < last + 2 * hop) {
                Fate::WithNext
            } else {
                Fate::Taken
            }
        });
        match due {
            Some((_, Fate::WithNext)) => {
                self.lanes[lane].tally.left_out += 1;
                return Ok(());
            }
            Some((_, Fate::LeftOut)) => {
                let state = &mut self.lanes[lane];
                state.tally.left_out += 1;
                state.degraded = true;
                if self.identity.mode != Mode::Dense {
                    self.gap(lane, hop, sink)?;
                }
                return Ok(());
            }
            _ => {}
        }
        let live = due.is_some();
        let waited = due.map_or(Duration::ZERO, |(span, _)| span.taken.elapsed());
        let follows_by_two = due.is_some_and(|(span, _)| last.is_some_and(|last| last + 2 * hop == span.last));
        let on_doubled = match self.identity.mode {
            Mode::Window => by_two,
            Mode::Carried => by_two && follows_by_two,
            _ => false,
        };
        let (streams, views) = (&self.model.manifest.streams, &self.view_of_stream);
        let hop = match &mut self.doubled {
            Doubled::There(_, hop) if on_doubled => hop,
            _ => &mut self.hop,
        };
        let weaker = self.weaker;
        let whole = !(live && relief.one_less);
        if !whole {
            hop.frames[weaker] = 0;
        }
        let busy = Instant::now();
        let (rest, reach, spent) = (state.rest, &self.reach, &self.spent);
        let (mut still, mut skips) = (0, false);
        let step = self.lanes[lane].camera.ring.take(|window| {
            still = window.frame(window.len() - 1).still;
            skips = rest.skips(still, reach);
            if !skips {
                let began = Instant::now();
                input::fill_hop(streams, views, window.len(), |i| window.frame(i), hop);
                spent.input.observe(began.elapsed().as_secs_f64());
            }
        });
        let result = match step {
            None => Ok(()),
            Some(Step::Gap { lost }) => {
                // Where the machine cannot keep up, that is said already, and the sum is told at the end.
                let level = if relief == Relief::NONE { log::Level::Warn } else { log::Level::Debug };
                log::log!(level, "camera {}: {lost} frames are in no hop", self.lanes[lane].camera.id);
                self.lanes[lane].degraded = true;
                self.gap(lane, lost, sink)
            }
            Some(Step::Ended) => self.finish(lane, sink),
            Some(Step::Hop(span)) => {
                let made = match skips {
                    true => self.hold(lane, span, sink),
                    false => self.recognize(lane, span, still, Way { on_doubled, whole, live }, sink),
                };
                if live {
                    self.spent.waited.observe(waited.as_secs_f64());
                    self.spent.total.observe(span.taken.elapsed().as_secs_f64());
                    let told = self.load.hop(began.elapsed(), waited, busy.elapsed());
                    self.tell(told);
                }
                made
            }
        };
        match &mut self.doubled {
            Doubled::There(network, hop) if on_doubled => hop.frames[weaker] = network.frames(weaker),
            _ => self.hop.frames[weaker] = self.network.frames(weaker),
        }
        result
    }

    /// Every camera has ended, and the daemon waits for a signal.
    pub fn idle(&mut self, sink: &mut dyn Sink) {
        self.supervisor.alive();
        sink.beat();
    }

    /// `lost` frames of a camera are in no hop.
    fn gap(&mut self, lane: usize, lost: u64, sink: &mut dyn Sink) -> Result<()> {
        self.give(lane, &Given::Gap { lost }, sink)?;
        let state = &mut self.lanes[lane];
        state.tally.gaps += 1;
        state.tally.lost += lost;
        state.progress.cut();
        state.rest.disturb();
        self.network.cut(Lane(lane));
        if let Doubled::There(network, _) = &mut self.doubled {
            network.cut(Lane(lane));
        }
        Ok(())
    }

    /// The network failed: loads the model again, on the same backend or, if that has just been tried, on the next of
    /// those that the config allows.
    ///
    /// Errors: when none is left.
    fn rebuild(&mut self, why: &Error) -> Result<()> {
        let allowed: Vec<String> = match self.backends {
            [] => inference::ORDER.map(String::from).to_vec(),
            backends => backends.to_vec(),
        };
        let at = allowed.iter().position(|b| b == self.backend).unwrap_or(0);
        let again = self.rebuilt.is_none_or(|last| last.elapsed() > AGAIN);
        let mut left = &allowed[if again { at } else { at + 1 }..];
        log::error!("{} failed: {why}; loading the model again", self.backend);
        let (old, options) = (self.backend, options(&self.identity));
        loop {
            if left.is_empty() {
                return Err(Error::internal(format!(
                    "{old} failed ({why}), and no other backend is left of those allowed ({})",
                    allowed.join(", ")
                )));
            }
            let (model, loader) = (self.model, self.loader);
            let loaded = self.supervisor.patiently("loading the model again", || loader(model, left, &options));
            let (network, backend) = loaded.map_err(|e| e.context(format!("{old} failed ({why})")))?;
            if rhythm(model, network.as_ref(), &self.identity) != self.rhythm {
                // The cameras' rings were made for hops of another shape.
                log::error!("{backend} takes other windows than {old}; a restart of actiond can use it");
                left = &left[left.iter().position(|b| b == backend).map_or(left.len(), |i| i + 1)..];
                continue;
            }
            if backend != old {
                log::error!("going on with {backend} in place of {old}, until a restart");
            }
            (self.network, self.backend) = (network, backend);
            break;
        }
        self.supervisor.status(&format!("watching on {}, loaded again after {old} failed", self.backend));
        self.rebuilt = Some(Instant::now());
        self.hop = Hop::of(self.network.as_ref(), self.names.len());
        self.reach = self.network.reach();
        self.engine = Engine { backend: self.backend.into(), precision: self.precision() };
        if !matches!(self.doubled, Doubled::Never) {
            self.doubled = Doubled::Possible;
        }
        for lane in &mut self.lanes {
            (lane.progress, lane.on_doubled) = (Progress::default(), false);
            lane.rest.disturb();
        }
        Ok(())
    }

    /// Moves a camera's state to the network that makes its next hop.
    fn change_network(&mut self, lane: usize, to_doubled: bool) {
        let state = &mut self.lanes[lane];
        if state.on_doubled == to_doubled {
            return;
        }
        state.on_doubled = to_doubled;
        let Doubled::There(doubled, _) = &mut self.doubled else { return };
        let (from, to) = match to_doubled {
            true => (&mut self.network, doubled),
            false => (doubled, &mut self.network),
        };
        let moved = from.take_state(Lane(lane));
        if self.identity.mode == Mode::Window {
            // A window's state is of its hop: what follows begins with a whole window.
            to.reset(Lane(lane));
            state.progress.cut();
        } else if let Some(Err(_)) = moved.map(|moved| to.put_state(Lane(lane), moved)) {
            // Two hops' states differ: nothing of before is left.
            state.progress = Progress::default();
            state.rest.disturb();
        }
    }

    fn recognize(
        &mut self,
        lane: usize,
        span: Span,
        still: u64,
        Way { on_doubled, whole, live }: Way,
        sink: &mut dyn Sink,
    ) -> Result<()> {
        self.change_network(lane, on_doubled);
        let state = &mut self.lanes[lane];
        if whole && !state.whole {
            // The stream that comes back has missed what lies between.
            state.progress.cut();
        }
        (state.whole, state.live) = (whole, live);
        let step = self.identity.hop * if on_doubled { 2 } else { 1 };
        let (network, hop) = match &mut self.doubled {
            Doubled::There(network, hop) if on_doubled => (network, hop),
            _ => (&mut self.network, &mut self.hop),
        };
        hop.follows = state.progress.hop(span.last, step);
        let logits = match network.step(Lane(lane), hop) {
            Ok(scores) => scores,
            Err(e) if e.kind() == Kind::Internal => {
                // The device may have been lost. This hop's input was made for the network that is gone.
                self.rebuild(&e)?;
                self.gap(lane, step as u64, sink)?;
                self.lanes[lane].degraded = true;
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let state = &mut self.lanes[lane];
        let logits: Vec<&[f32]> = logits.logits.iter().map(Vec::as_slice).collect();
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        if let Err(e) = decide::fuse(&self.model.manifest.fusion, &names, &self.model.labels, &logits, &mut self.scores)
        {
            // Once, not per hop.
            let level = if state.degraded { log::Level::Debug } else { log::Level::Error };
            log::log!(
                level,
                "camera {}: frames {} to {}: {e}; this hop is left out",
                state.camera.id,
                span.first,
                span.last
            );
            state.last_frame = span.last;
            self.unusable += 1;
            if self.unusable >= UNUSABLE {
                // Not one odd picture: what computes is out of order.
                self.unusable = 0;
                self.rebuild(&e)?;
            } else {
                // What is no number stays one in a state that is carried.
                self.network.reset(Lane(lane));
                if let Doubled::There(doubled, _) = &mut self.doubled {
                    doubled.reset(Lane(lane));
                }
                self.lanes[lane].progress = Progress::default();
            }
            self.gap(lane, step as u64, sink)?;
            self.lanes[lane].degraded = true;
            return Ok(());
        }
        self.unusable = 0;
        let (backend, cameras) = (self.backend, self.lanes.len());
        self.supervisor.ready(|| format!("watching {cameras} cameras on {backend}"));
        let state = &mut self.lanes[lane];
        state.tally.hops += 1;
        state.tally.partial += u64::from(!whole);
        state.last_frame = span.last;
        let network = match &self.doubled {
            Doubled::There(network, _) if on_doubled => network,
            _ => &self.network,
        };
        for ((_, timing), spent) in self.spent.streams.iter().zip(network.spent()).filter(|(_, s)| !s.is_zero()) {
            timing.observe(spent.as_secs_f64());
        }
        if state.progress.is_cold(&self.reach, self.window) {
            return Ok(());
        }
        let warming = state.progress.is_warming(&self.reach);
        if state.rest.computed(still, warming, &self.reach) {
            log::debug!("camera {}: nothing moves from frame {}", state.camera.id, span.last + 1 - still);
            state.held.clone_from(&self.scores);
        }
        self.decide(lane, span, sink)?;
        self.lanes[lane].degraded = false;
        Ok(())
    }

    /// A hop of which nothing needs to be computed as nothing moves: the scores stand, so that what is smoothed, waited
    /// for or open goes on as if they came.
    fn hold(&mut self, lane: usize, span: Span, sink: &mut dyn Sink) -> Result<()> {
        let state = &mut self.lanes[lane];
        state.tally.skipped += 1;
        state.last_frame = span.last;
        state.progress.rest(span.last, &self.reach);
        state.rest.skipped();
        std::mem::swap(&mut state.held, &mut self.scores);
        let decided = self.decide(lane, span, sink);
        std::mem::swap(&mut self.lanes[lane].held, &mut self.scores);
        decided
    }

    fn decide(&mut self, lane: usize, span: Span, sink: &mut dyn Sink) -> Result<()> {
        let began = Instant::now();
        let seen = self.seen(lane, span.taken.elapsed());
        // For the while: what is told needs all of `self`.
        let scores = std::mem::take(&mut self.scores);
        let hop = HopScores { first_frame: span.first, last_frame: span.last, scores: &scores };
        let told = self.give(lane, &Given::Hop { hop, seen }, sink);
        self.scores = scores;
        self.spent.decide.observe(began.elapsed().as_secs_f64());
        told
    }

    fn finish(&mut self, lane: usize, sink: &mut dyn Sink) -> Result<()> {
        let state = &mut self.lanes[lane];
        if state.ended {
            return Ok(());
        }
        state.ended = true;
        let last_frame = state.last_frame;
        let seen = self.seen(lane, Duration::ZERO);
        self.give(lane, &Given::End { last_frame, seen }, sink)
    }

    /// When a camera has been paused and nothing of it waits any more, what is open has ended: nobody looks.
    fn pause(&mut self, lane: usize, sink: &mut dyn Sink) -> Result<()> {
        let state = &mut self.lanes[lane];
        let paused = state.camera.is_paused();
        if paused == state.paused || state.ended || paused && state.camera.ring.waiting_since().is_some() {
            return Ok(());
        }
        state.paused = paused;
        if paused {
            let last_frame = state.last_frame;
            let seen = self.seen(lane, Duration::ZERO);
            self.give(lane, &Given::End { last_frame, seen }, sink)?;
        }
        Ok(())
    }

    /// The circumstances of what is decided now about a frame that came `delay` ago.
    fn seen(&mut self, lane: usize, delay: Duration) -> Seen {
        let (now, set_by) = self.wall.now();
        let state = &self.lanes[lane];
        Seen {
            at: now.checked_sub(delay).unwrap_or(now),
            set_by,
            delay_ms: delay.as_millis() as u64,
            warming: state.progress.is_warming(&self.reach),
            degraded: state.degraded || state.live && self.load.relief() != Relief::NONE,
            still: state.rest.is_resting(),
        }
    }

    fn give(&mut self, lane: usize, given: &Given, sink: &mut dyn Sink) -> Result<()> {
        sink.given(Lane(lane), &self.engine, given);
        self.lanes[lane].teller.give(&self.about, &self.engine, given, &mut |event| sink.event(event))
    }
}

fn rhythm(model: &Model, network: &dyn Network, identity: &Identity) -> Rhythm {
    let rhythm = inference::rhythm(model, network, identity.hop);
    // A doubled hop's own frames must still be there.
    let more = if identity.mode == Mode::Carried && doubles(model, network, identity.hop) { identity.hop } else { 0 };
    Rhythm { window: rhythm.window + more, ..rhythm }
}

/// Whether a ring holds what two hops as one take in carried mode: what one takes, and the frames of another.
fn doubles(model: &Model, network: &dyn Network, hop: usize) -> bool {
    inference::rhythm(model, network, hop).window + hop <= WINDOW
}

fn options(identity: &Identity) -> LoadOptions {
    LoadOptions { mode: identity.mode, hop: identity.hop, ..LoadOptions::default() }
}

#[cfg(test)]
mod tests {
    use std::{any::Any, path::Path};

    use super::*;
    use crate::{
        cadence::FPS,
        compile::Packed,
        config::Camera as Config,
        event,
        frame::{Frame, View},
        inference::Scores,
        model::{Decision, Precision},
        scale::Region,
        source::{self, Pace, Uri},
    };

    const HOP: usize = 8;

    /// A network that takes its time and nothing of the processor, so that what this machine can do is known.
    struct Slow {
        frames: usize,
        reach: Reach,
        /// What one stream's hop takes.
        cost: Duration,
        scores: Scores,
        spent: Vec<Duration>,
        /// Lanes that have a state here.
        lanes: Vec<Lane>,
    }

    impl Slow {
        fn new(mode: Mode, frames: usize, cost: Duration, labels: usize) -> Box<Slow> {
            let carried = matches!(mode, Mode::Carried | Mode::Continuous);
            // All for one label that is no background, so that its event is open all the time.
            let logits = (0..labels).map(|l| if l == labels - 1 { 9.0 } else { 0.0 }).collect::<Vec<f32>>();
            Box::new(Slow {
                frames,
                reach: Reach { carried, warm_after: if carried { 16 } else { 0 }, ..Reach::default() },
                cost,
                scores: Scores { logits: vec![logits; 2] },
                spent: vec![Duration::ZERO; 2],
                lanes: Vec::new(),
            })
        }
    }

    impl Network for Slow {
        fn step(&mut self, lane: Lane, hop: &Hop) -> Result<&Scores> {
            assert!(hop.frames.iter().all(|&f| f == 0 || f == self.frames));
            let streams = hop.frames.iter().filter(|&&f| f > 0).count();
            let whole = self.scores.logits.iter().find(|l| !l.is_empty()).unwrap().clone();
            for (logits, &frames) in self.scores.logits.iter_mut().zip(&hop.frames) {
                *logits = if frames > 0 { whole.clone() } else { Vec::new() };
            }
            thread::sleep(self.cost * streams as u32);
            if !self.lanes.contains(&lane) {
                self.lanes.push(lane);
            }
            Ok(&self.scores)
        }

        fn reset(&mut self, lane: Lane) {
            self.lanes.retain(|l| *l != lane);
        }

        fn precision(&self) -> &[Precision] {
            &[Precision::F32]
        }

        fn spent(&self) -> &[Duration] {
            &self.spent
        }

        fn any_length(&self, _: usize) -> bool {
            false
        }

        fn cut(&mut self, _: Lane) {}

        fn packed(&self, _: usize) -> Option<Packed> {
            None
        }

        fn frames(&self, _: usize) -> usize {
            self.frames
        }

        fn reach(&self) -> Reach {
            self.reach
        }

        fn take_state(&mut self, lane: Lane) -> Option<Box<dyn Any + Send>> {
            let there = self.lanes.contains(&lane);
            self.reset(lane);
            there.then(|| Box::new(lane) as Box<dyn Any + Send>)
        }

        fn put_state(&mut self, lane: Lane, _: Box<dyn Any + Send>) -> Result<(), Box<dyn Any + Send>> {
            assert!(!self.lanes.contains(&lane), "the state is in both networks");
            self.lanes.push(lane);
            Ok(())
        }
    }

    #[derive(Default)]
    struct Events(Vec<Event>);

    impl Sink for Events {
        fn event(&mut self, event: &mut Event) -> Result<()> {
            self.0.push(event.clone());
            Ok(())
        }
    }

    struct Watched {
        events: Vec<Event>,
        tally: Vec<Tally>,
        standing: Standing,
        /// Frames that each camera gave.
        frames: u64,
    }

    fn config(i: usize) -> Config {
        Config {
            id: format!("{i}"),
            source: Uri::Csi(i as u32),
            options: source::Options::default(),
            region: Region::WHOLE,
            mask: Vec::new(),
            frames: None,
            skip_still: false,
        }
    }

    /// A frame that shows nothing.
    fn blank(model: &Model) -> Frame {
        let view = |s: &scale::ViewSpec| {
            let pixels = s.size[0] * s.size[1];
            let of = |there: bool, n: usize| if there { pixels * n } else { 0 };
            View { rgb: vec![0; of(s.rgb, 3)], flow: vec![0.0; of(s.flow.is_some(), 2)] }
        };
        Frame { number: 0, still: 0, views: scale::views(&model.manifest).0.iter().map(view).collect() }
    }

    /// Two hops of 32 as one take 70 frames; the ring has 64, and would show the oldest again for those that it has not.
    #[test]
    fn a_doubled_hop_is_offered_only_where_the_ring_holds_what_it_takes() {
        let model = Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default")).unwrap();
        for (hop, frames, doubles, window) in [(8, 14, true, 22), (24, 30, true, 54), (32, 38, false, 38)] {
            let network = Slow::new(Mode::Carried, frames, Duration::ZERO, model.labels.len());
            let identity = Identity { device: "test".into(), mode: Mode::Carried, hop };
            let mut recognizer = Recognizer::with(&model, &[], identity, network, "slow");
            assert_eq!(matches!(recognizer.doubled, Doubled::Possible), doubles, "{hop}");
            assert_eq!(recognizer.rhythm().window, window, "{hop}");
            // One that takes more than was thought is not used.
            recognizer.has_doubled(Ok(Slow::new(Mode::Carried, window + 1, Duration::ZERO, model.labels.len())));
            assert!(matches!(recognizer.doubled, Doubled::Never), "{hop}");
        }
    }

    /// Watches `cameras` live cameras for `seconds`, whose hops take `cost` a stream; a doubled one takes half as much
    /// again.
    fn watch(mode: Mode, cameras: usize, cost: Duration, seconds: u64) -> Watched {
        let model = Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default")).unwrap();
        let labels = model.labels.len();
        let frames = if matches!(mode, Mode::Dense | Mode::Window) { WINDOW } else { HOP };
        let identity = Identity { device: "test".into(), mode, hop: HOP };
        let network = Slow::new(mode, frames, cost, labels);
        let mut recognizer = Recognizer::with(&model, &[], identity, network, "slow");
        if matches!(recognizer.doubled, Doubled::Possible) {
            let frames = if mode == Mode::Carried { 2 * HOP } else { WINDOW };
            let network = Slow::new(mode, frames, cost * 3 / 2, labels);
            let hop = Hop::of(network.as_ref(), 2);
            recognizer.doubled = Doubled::There(network, hop);
        }
        let bell = Arc::new(Bell::default());
        let mut handles = Vec::new();
        for i in 0..cameras {
            let camera = Camera::new(&config(i), recognizer.rhythm(), bell.clone());
            camera.ring.set_pace(Pace::Live);
            recognizer.add(camera.clone(), Decider::new(&model, &Decision::default(), HOP).unwrap());
            handles.push(camera);
        }
        let blank = blank(&model);
        let pushed = seconds * FPS;
        let pusher = thread::spawn(move || {
            let mut frames = vec![blank; handles.len()];
            let began = Instant::now();
            for n in 0..pushed {
                thread::sleep(Duration::from_millis(40 * n).saturating_sub(began.elapsed()));
                for (camera, frame) in handles.iter().zip(&mut frames) {
                    assert!(camera.ring.push(frame));
                }
            }
            handles.iter().for_each(|c| c.ring.close());
        });
        let mut events = Events::default();
        recognizer.run(&bell, &Shutdown::new(), &mut events).unwrap();
        pusher.join().unwrap();
        let standing = *recognizer.standing().lock().unwrap();
        Watched { events: events.0, tally: recognizer.tally(), standing, frames: pushed }
    }

    /// Cameras that need twice what there is.
    fn twice_too_much(mode: Mode) {
        let watched = watch(mode, 6, Duration::from_millis(53), 14);
        let Watched { events, tally, standing, frames } = &watched;
        assert!(standing.rung > 0 && standing.times == 1, "{standing:?}");
        // Nothing queues: what is told is told in time, and says that something was left out.
        assert!(events.len() >= 12, "{}", events.len());
        let slowest = events.iter().map(|e| e.delay_ms).max().unwrap();
        assert!(slowest < 2000, "{mode:?}: {slowest} ms");
        assert!(events.iter().filter(|e| e.last_frame > 200).all(|e| e.flags.contains(&event::Flag::Degraded)));
        for (i, t) in tally.iter().enumerate() {
            // Fair, and all that there was is accounted for.
            let mean = tally.iter().map(|t| t.hops).sum::<u64>() / tally.len() as u64;
            assert!(t.hops >= 4 && 2 * t.hops >= mean, "{mode:?}: {tally:?}");
            assert!(events.iter().any(|e| e.camera == format!("{i}")));
            let hops = match mode {
                Mode::Dense | Mode::Window => (frames - WINDOW as u64) / HOP as u64 + 1,
                _ => frames / HOP as u64,
            };
            match mode {
                // A hop of a window that was left out has not lost its frames.
                Mode::Dense => assert_eq!(t.hops + t.left_out + t.lost / HOP as u64, hops, "{t:?}"),
                _ => assert!(t.hops + t.left_out >= hops / 2 && t.hops <= hops, "{t:?}"),
            }
            assert_eq!(t.partial > 0, standing.relief.one_less, "{mode:?}: {t:?}");
        }
    }

    #[test]
    fn dense_windows_that_are_too_many_double_their_hop() {
        twice_too_much(Mode::Dense);
    }

    #[test]
    fn windows_that_are_too_many_double_their_hop() {
        twice_too_much(Mode::Window);
    }

    #[test]
    fn carried_hops_that_are_too_many_are_run_in_twos() {
        twice_too_much(Mode::Carried);
    }

    #[test]
    fn continuous_hops_that_are_too_many_lose_the_weaker_stream() {
        twice_too_much(Mode::Continuous);
    }

    /// As a device that is lost: what it has loaded fails at its third hop; or as one that is out of order: it gives these
    /// scores from the third on.
    struct Lost(Box<Slow>, usize, Option<Scores>);

    impl Network for Lost {
        fn step(&mut self, lane: Lane, hop: &Hop) -> Result<&Scores> {
            self.1 += 1;
            match &self.2 {
                None if self.1 == 3 => Err(Error::internal("the device is lost")),
                Some(scores) if self.1 >= 3 => Ok(scores),
                _ => self.0.step(lane, hop),
            }
        }

        fn reset(&mut self, lane: Lane) {
            self.0.reset(lane);
        }

        fn precision(&self) -> &[Precision] {
            self.0.precision()
        }

        fn spent(&self) -> &[Duration] {
            self.0.spent()
        }

        fn any_length(&self, stream: usize) -> bool {
            self.0.any_length(stream)
        }

        fn cut(&mut self, lane: Lane) {
            self.0.cut(lane);
        }

        fn packed(&self, stream: usize) -> Option<Packed> {
            self.0.packed(stream)
        }

        fn frames(&self, stream: usize) -> usize {
            self.0.frames(stream)
        }

        fn reach(&self) -> Reach {
            self.0.reach()
        }

        fn take_state(&mut self, lane: Lane) -> Option<Box<dyn Any + Send>> {
            self.0.take_state(lane)
        }

        fn put_state(&mut self, lane: Lane, state: Box<dyn Any + Send>) -> Result<(), Box<dyn Any + Send>> {
            self.0.put_state(lane, state)
        }
    }

    /// `cpu` is lost again each time, `cuda` gives what is no number, `tract` works.
    fn loads(model: &Model, order: &[String], options: &LoadOptions) -> Result<(Box<dyn Network>, &'static str)> {
        let slow = Slow::new(options.mode, HOP, Duration::ZERO, model.labels.len());
        match order.first().map(String::as_str) {
            Some("cpu") => Ok((Box::new(Lost(slow, 0, None)), "cpu")),
            Some("cuda") => {
                let scores = Scores { logits: vec![vec![f32::NAN; model.labels.len()]; 2] };
                Ok((Box::new(Lost(slow, 0, Some(scores))), "cuda"))
            }
            Some("tract") => Ok((slow, "tract")),
            _ => Err(Error::unavailable("nothing to load")),
        }
    }

    /// A recording of 20 hops on these backends: how it went, its events and the hops made and frames lost.
    fn lose(backends: &[&str]) -> (Result<()>, Vec<Event>, Tally) {
        let model = Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default")).unwrap();
        let backends: Vec<String> = backends.iter().map(|b| b.to_string()).collect();
        let identity = Identity { device: "test".into(), mode: Mode::Continuous, hop: HOP };
        let (network, backend) = loads(&model, &backends, &options(&identity)).unwrap();
        let mut recognizer = Recognizer::with(&model, &backends, identity, network, backend);
        recognizer.loader = loads;
        let bell = Arc::new(Bell::default());
        let camera = Camera::new(&config(0), recognizer.rhythm(), bell.clone());
        camera.ring.set_pace(Pace::Recorded);
        recognizer.add(camera.clone(), Decider::new(&model, &Decision::default(), HOP).unwrap());
        let mut frame = blank(&model);
        let pusher = thread::spawn(move || {
            let _ = (0..20 * HOP).all(|_| camera.ring.push(&mut frame));
            camera.ring.close();
        });
        let mut events = Events::default();
        let result = recognizer.run(&bell, &Shutdown::new(), &mut events);
        recognizer.lanes[0].camera.ring.close();
        pusher.join().unwrap();
        (result, events.0, recognizer.tally()[0])
    }

    #[test]
    fn a_network_that_fails_is_loaded_again_and_then_gives_way_to_the_next_backend() {
        let (result, events, tally) = lose(&["cpu", "tract"]);
        result.unwrap();
        // Two hops, a failed one, two more, a failed one, and the rest on the other backend.
        assert_eq!((tally.hops, tally.lost), (18, 2 * HOP as u64), "{tally:?}");
        assert_eq!(events.last().map(|e| (e.backend.as_str(), e.phase)), Some(("tract", decide::Phase::End)));
    }

    #[test]
    fn a_network_that_gives_no_numbers_is_one_that_fails() {
        let (result, events, tally) = lose(&["cuda", "tract"]);
        result.unwrap();
        // Two hops, three without a number, and both once more.
        assert_eq!((tally.hops, tally.lost), (14, 6 * HOP as u64), "{tally:?}");
        assert_eq!(events.last().map(|e| (e.backend.as_str(), e.phase)), Some(("tract", decide::Phase::End)));
    }

    #[test]
    fn where_no_backend_is_left_the_error_says_which_there_were() {
        let (result, _, tally) = lose(&["cpu"]);
        let e = result.unwrap_err().to_string();
        assert!(e.contains("cpu failed (the device is lost)") && e.contains("no other backend is left"), "{e}");
        assert_eq!(tally.hops, 4);
    }

    #[test]
    fn a_machine_that_keeps_up_leaves_nothing_out() {
        let watched = watch(Mode::Continuous, 3, Duration::from_millis(10), 6);
        assert_eq!((watched.standing.rung, watched.standing.times), (0, 0));
        let all = Tally { hops: watched.frames / HOP as u64, ..Tally::default() };
        assert_eq!(watched.tally, [all; 3]);
        assert!(watched.events.len() >= 6);
        assert!(watched.events.iter().all(|e| !e.flags.contains(&event::Flag::Degraded)));
    }
}
