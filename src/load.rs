//! What to leave out when the machine cannot keep up, so that it stays live: decided from how late hops are. Pure: no
//! clock; whoever asks says what time it is.
//!
//! Each window mode has a ladder of [`Relief`], because what saves work is not the same everywhere:
//!
//! | mode | first | then |
//! | --- | --- | --- |
//! | `dense` | the hop is doubled | cameras take turns |
//! | `window` | the hop is doubled, by a graph compiled for it | cameras take turns |
//! | `carried` | two hops are run as one, by a graph compiled for it | the weaker stream is left out, then cameras take turns |
//! | `continuous` | the weaker stream is left out | cameras take turns |
//!
//! One rung up: hops have been late for [`SUSTAINED`] with none on time between them, and the rung before has had [`SETTLE`] to work. One rung down:
//! no hop was late for a while, and what the recognizer was busy meanwhile leaves room for the work of the rung below. A
//! rung down that does not last doubles the time until the next try, so that a machine at its limit does not flap.

use std::{fmt, time::Duration};

use crate::{cadence::FPS, config::Mode};

/// How long hops have to be late in a row: one hiccup is no overload.
const SUSTAINED: Duration = Duration::from_millis(600);
/// What a rung gets to show that it is enough.
const SETTLE: Duration = Duration::from_millis(1500);
/// How long no hop may have been late before the rung below is tried; doubled, up to the second, by each try that failed.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(256));
/// A rung down has lasted when this has passed without one up.
const LASTING: Duration = Duration::from_secs(60);
/// How busy the recognizer may be expected to be on the rung below.
const ROOM: f64 = 0.8;
/// No camera gets less than one turn in so many.
const TURNS: [u64; 7] = [2, 3, 4, 6, 8, 12, 16];

/// What is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relief {
    /// A hop is twice as many frames.
    pub doubled: bool,
    /// The stream of the smallest weight is not run.
    pub one_less: bool,
    /// One of so many cameras is looked at, at any one time.
    pub turns: u64,
}

impl Relief {
    pub const NONE: Relief = Relief { doubled: false, one_less: false, turns: 1 };
}

impl fmt::Display for Relief {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        if self.doubled {
            parts.push("the hop is doubled".into());
        }
        if self.one_less {
            parts.push("the weaker stream is left out".into());
        }
        if self.turns > 1 {
            parts.push(format!("each camera has one turn in {}", self.turns));
        }
        if parts.is_empty() {
            parts.push("nothing is left out".into());
        }
        f.write_str(&parts.join(", "))
    }
}

/// A move on the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// The first rung up.
    Begun(Relief),
    Changed(Relief),
    /// Nothing is left out any more; how long something was.
    Over(Duration),
}

/// Where it stands and how often it came to it: for the log, a status page, metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// What is left out now.
    pub relief: Relief,
    /// The rung, 0 while nothing is left out, and the highest that there was.
    pub rung: usize,
    pub highest: usize,
    /// Times that the machine could not keep up.
    pub times: u64,
}

/// The governor.
#[derive(Debug)]
pub struct Load {
    /// What is left out on each rung, and the work that remains.
    ladder: Vec<(Relief, f64)>,
    rung: usize,
    hop: Duration,
    begun: Duration,
    changed: Duration,
    late_since: Option<Duration>,
    /// When the present stretch without a late hop began to be measured, and the work in it.
    calm_since: Duration,
    busy: Duration,
    patience: Duration,
    lowered: Option<Duration>,
    highest: usize,
    times: u64,
}

impl Load {
    /// For a mode with hops of `hop` frames; `doubled` is the work that a doubled hop leaves of two, where one can be had.
    pub fn new(mode: Mode, hop: usize, streams: usize, doubled: Option<f64>) -> Self {
        let mut ladder = vec![(Relief::NONE, 1.0)];
        let mut last = ladder[0];
        if let Some(work) = doubled {
            last = (Relief { doubled: true, ..last.0 }, work);
            ladder.push(last);
        }
        if matches!(mode, Mode::Carried | Mode::Continuous) && streams > 1 {
            let left = (streams - 1) as f64 / streams as f64;
            last = (Relief { one_less: true, ..last.0 }, last.1 * left);
            ladder.push(last);
        }
        ladder.extend(TURNS.map(|turns| (Relief { turns, ..last.0 }, last.1 / turns as f64)));
        Load {
            ladder,
            rung: 0,
            hop: Duration::from_millis(hop as u64 * 1000 / FPS),
            begun: Duration::ZERO,
            changed: Duration::ZERO,
            late_since: None,
            calm_since: Duration::ZERO,
            busy: Duration::ZERO,
            patience: PATIENCE.0,
            lowered: None,
            highest: 0,
            times: 0,
        }
    }

    pub fn relief(&self) -> Relief {
        self.ladder[self.rung].0
    }

    pub fn standing(&self) -> Standing {
        Standing { relief: self.relief(), rung: self.rung, highest: self.highest, times: self.times }
    }

    /// A doubled hop can't be had after all.
    pub fn never_doubled(&mut self) {
        self.ladder.iter_mut().for_each(|(relief, _)| relief.doubled = false);
    }

    /// From when on a hop that waits is late. Cameras whose hops fall due together wait for each other, up to a whole hop
    /// on a machine that just keeps up; more than that is work left over.
    fn late(&self) -> Duration {
        let hop = if self.relief().doubled { 2 * self.hop } else { self.hop };
        // The ring holds frames for 1.28 s: by then it must have become better.
        (hop * 3 / 2).clamp(Duration::from_millis(400), Duration::from_millis(800))
    }

    /// At `now`, a hop of a live camera was begun that had waited for `waited`, and took `busy`.
    pub fn hop(&mut self, now: Duration, waited: Duration, busy: Duration) -> Option<Move> {
        self.busy += busy;
        if waited <= self.late() {
            // Only a hop that hardly waited shows that nothing is left over: where hops are lost, those behind them have
            // waited less.
            if waited <= self.late() / 4 {
                self.late_since = None;
            }
            return self.calm(now);
        }
        (self.calm_since, self.busy) = (now, Duration::ZERO);
        let since = *self.late_since.get_or_insert(now);
        let settled = self.rung == 0 || now.saturating_sub(self.changed) >= SETTLE;
        if now.saturating_sub(since) < SUSTAINED || !settled || self.rung + 1 == self.ladder.len() {
            return None;
        }
        if let Some(lowered) = self.lowered.take() {
            let failed = now.saturating_sub(lowered) < LASTING;
            self.patience = if failed { (self.patience * 2).min(PATIENCE.1) } else { PATIENCE.0 };
        }
        self.rung += 1;
        self.highest = self.highest.max(self.rung);
        (self.changed, self.late_since) = (now, None);
        if self.rung > 1 {
            return Some(Move::Changed(self.relief()));
        }
        self.begun = now;
        self.times += 1;
        Some(Move::Begun(self.relief()))
    }

    /// At `now` no hop is waiting.
    pub fn idle(&mut self, now: Duration) -> Option<Move> {
        self.late_since = None;
        self.calm(now)
    }

    fn calm(&mut self, now: Duration) -> Option<Move> {
        let length = now.saturating_sub(self.calm_since);
        if self.rung == 0 || length < self.patience || now.saturating_sub(self.changed) < self.patience {
            return None;
        }
        let used = self.busy.as_secs_f64() / length.as_secs_f64();
        (self.calm_since, self.busy) = (now, Duration::ZERO);
        let more = self.ladder[self.rung - 1].1 / self.ladder[self.rung].1;
        if used * more > ROOM {
            return None;
        }
        self.rung -= 1;
        self.changed = now;
        self.lowered = Some(now);
        Some(if self.rung == 0 { Move::Over(now.saturating_sub(self.begun)) } else { Move::Changed(self.relief()) })
    }
}

/// Whether a camera has its turn: `lane` is its number, `frame` counts its frames, and a turn lasts `slot` of them.
pub fn has_turn(lane: usize, frame: u64, slot: u64, turns: u64) -> bool {
    (frame / slot.max(1) + lane as u64).is_multiple_of(turns.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODES: [Mode; 4] = [Mode::Dense, Mode::Window, Mode::Carried, Mode::Continuous];

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn doubled(mode: Mode) -> Option<f64> {
        match mode {
            Mode::Dense => Some(0.5),
            Mode::Window => Some(0.67),
            Mode::Carried => Some(0.77),
            Mode::Continuous => None,
        }
    }

    fn load(mode: Mode) -> Load {
        Load::new(mode, 8, 2, doubled(mode))
    }

    /// A machine that is simulated: `cameras` whose hops cost `cost` each fall due together every 320 ms, and are run one
    /// after another; what waits longer than the ring holds is lost. `cost(second)` may change. Returns the moves.
    struct Machine {
        mode: Mode,
        load: Load,
        cameras: usize,
        now: Duration,
        /// When each waiting hop fell due, oldest first.
        queue: std::collections::VecDeque<(Duration, usize)>,
        due: u64,
        moves: Vec<(Duration, Move)>,
        longest: Duration,
        lost: u64,
        made: Vec<u64>,
        left_out: u64,
    }

    impl Machine {
        fn new(mode: Mode, cameras: usize) -> Self {
            Machine {
                mode,
                load: load(mode),
                cameras,
                now: Duration::ZERO,
                queue: Default::default(),
                due: 1,
                moves: Vec::new(),
                longest: Duration::ZERO,
                lost: 0,
                made: vec![0; cameras],
                left_out: 0,
            }
        }

        fn told(&mut self, told: Option<Move>) {
            self.moves.extend(told.map(|m| (self.now, m)));
        }

        /// Runs until `end`, with hops that cost `cost` when nothing is left out.
        fn run(&mut self, end: Duration, cost: Duration) {
            while self.now < end {
                while ms(320 * self.due) <= self.now {
                    for camera in 0..self.cameras {
                        let relief = self.load.relief();
                        let doubled_out = relief.doubled && self.due % 2 == 1;
                        let slot = if relief.doubled { 16 } else { 214 };
                        if doubled_out || !has_turn(camera, self.due * 8, slot, relief.turns) {
                            self.left_out += 1;
                        } else {
                            self.queue.push_back((ms(320 * self.due), camera));
                        }
                    }
                    self.due += 1;
                }
                while self.queue.front().is_some_and(|(due, _)| *due + ms(1280) < self.now) {
                    self.queue.pop_front();
                    self.lost += 1;
                }
                let Some((due, camera)) = self.queue.pop_front() else {
                    self.now += ms(20);
                    let told = self.load.idle(self.now);
                    self.told(told);
                    continue;
                };
                let relief = self.load.relief();
                let of_two = if relief.doubled { 2.0 * doubled(self.mode).unwrap() } else { 1.0 };
                let cost = cost.mul_f64(if relief.one_less { of_two / 2.0 } else { of_two });
                let waited = self.now - due;
                self.now += cost;
                self.longest = self.longest.max(self.now - due);
                self.made[camera] += 1;
                let told = self.load.hop(self.now, waited, cost);
                self.told(told);
            }
        }
    }

    #[test]
    fn a_machine_that_keeps_up_leaves_nothing_out() {
        for mode in MODES {
            // 90 % busy, and all cameras due at once.
            let mut machine = Machine::new(mode, 6);
            machine.run(ms(600_000), ms(48));
            assert_eq!((machine.moves.len(), machine.lost, machine.left_out), (0, 0, 0), "{mode:?}");
        }
    }

    #[test]
    fn twice_too_much_is_left_out_and_every_camera_goes_on() {
        for mode in MODES {
            let mut machine = Machine::new(mode, 6);
            machine.run(ms(10_000), ms(106));
            // Early on something may be lost; nothing waits for long then or later.
            let early = machine.lost;
            machine.run(ms(300_000), ms(106));
            assert!(machine.longest < ms(1500), "{mode:?}: {:?}", machine.longest);
            assert!(machine.lost - early < 30, "{mode:?}: {} then {}", early, machine.lost);
            let (least, most) = (machine.made.iter().min().unwrap(), machine.made.iter().max().unwrap());
            assert!(*least > 200 && most - least <= most / 5, "{mode:?}: {:?}", machine.made);
            assert!(matches!(machine.moves[0].1, Move::Begun(_)) && machine.moves[0].0 < ms(5_000));
            let standing = machine.load.standing();
            assert!(standing.rung > 0 && standing.times >= 1, "{mode:?}: {standing:?}");
        }
    }

    #[test]
    fn the_ladder_of_each_mode_saves_work_rung_by_rung() {
        for mode in MODES {
            let ladder = load(mode).ladder;
            assert!(ladder.windows(2).all(|w| w[1].1 < w[0].1));
            let rungs: Vec<_> = ladder.iter().map(|(r, _)| (r.doubled, r.one_less, r.turns)).take(4).collect();
            let none = (false, false, 1);
            match mode {
                Mode::Dense | Mode::Window => assert_eq!(rungs[..3], [none, (true, false, 1), (true, false, 2)]),
                Mode::Carried => assert_eq!(rungs, [none, (true, false, 1), (true, true, 1), (true, true, 2)]),
                Mode::Continuous => assert_eq!(rungs[..3], [none, (false, true, 1), (false, true, 2)]),
            }
        }
        // One stream can't be left out of one.
        assert_eq!(Load::new(Mode::Carried, 8, 1, None).ladder[1].0, Relief { turns: 2, ..Relief::NONE });
        assert_eq!(Load::new(Mode::Window, 48, 2, None).ladder[1].0, Relief { turns: 2, ..Relief::NONE });
    }

    #[test]
    fn one_hiccup_is_no_overload() {
        let mut machine = Machine::new(Mode::Dense, 4);
        machine.run(ms(20_000), ms(20));
        // Something else had the machine for a second.
        machine.now += ms(1000);
        machine.run(ms(60_000), ms(20));
        assert!(machine.moves.is_empty(), "{:?}", machine.moves);
    }

    #[test]
    fn it_is_over_when_the_load_is_gone() {
        for mode in MODES {
            let mut machine = Machine::new(mode, 6);
            machine.run(ms(60_000), ms(106));
            machine.run(ms(200_000), ms(20));
            assert!(matches!(machine.moves.last().unwrap().1, Move::Over(_)), "{mode:?}: {:?}", machine.moves);
            assert_eq!(machine.load.relief(), Relief::NONE);
            let begun = machine.moves.iter().filter(|(_, m)| matches!(m, Move::Begun(_))).count();
            let over = machine.moves.iter().filter(|(_, m)| matches!(m, Move::Over(_))).count();
            assert_eq!((begun, over, machine.load.standing().times), (1, 1, 1), "{mode:?}: {:?}", machine.moves);
        }
    }

    #[test]
    fn a_machine_at_its_limit_does_not_flap() {
        for mode in MODES {
            for cost in (50..130).step_by(4) {
                let mut machine = Machine::new(mode, 6);
                machine.run(ms(3_600_000), ms(cost));
                let early = machine.moves.iter().filter(|(t, _)| *t < ms(1_200_000)).count();
                let late = machine.moves.len() - early;
                assert!(early <= 30 && late <= 24, "{mode:?}, {cost} ms: {early}, then {late} in 40 minutes");
            }
        }
    }

    /// The rung below is not tried where the work says that it can't be done.
    #[test]
    fn no_try_that_is_bound_to_fail() {
        let mut load = load(Mode::Dense);
        let mut now = Duration::ZERO;
        while load.standing().rung == 0 {
            now += ms(100);
            load.hop(now, ms(1000), ms(100));
        }
        for _ in 0..10_000 {
            now += ms(100);
            assert_eq!(load.hop(now, ms(50), ms(60)), None);
        }
        let mut moves = 0;
        for _ in 0..1_000 {
            now += ms(100);
            moves += usize::from(load.hop(now, ms(50), ms(30)).is_some());
        }
        assert_eq!((moves, load.relief()), (1, Relief::NONE));
    }

    #[test]
    fn turns_go_round() {
        for turns in 1..9 {
            for lane in 0..20 {
                let had: u64 = (0..turns * 10).map(|slot| u64::from(has_turn(lane, slot * 214 + 5, 214, turns))).sum();
                assert_eq!(had, 10);
            }
        }
        // At any one time, cameras share alike.
        let at_once = |slot: u64| (0..12).filter(|&lane| has_turn(lane, slot * 16, 16, 3)).count();
        assert!((0..30).all(|slot| at_once(slot) == 4));
    }
}
