//! The rolling window of one camera: frames in at 25 fps, hops out. All frame back-pressure lives here.
//!
//! A hop is due every `hop` frames and sees the last `window` frames. The ring holds [`SLACK`] frames more than the
//! longest window, which is how late the recognizer may come. A recording waits when the ring is full of frames that are
//! still needed; a camera does not: hops are left out then, and the loss is handed out as a [`Step::Gap`] with its count.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use heapless::Deque;

use crate::{
    frame::{Frame, View},
    source::Pace,
};

/// Frames in the rolling window: 2.56 s at 25 fps (Table 1 of the paper).
pub const WINDOW: usize = 64;

/// Frames that may wait for the recognizer behind the window that it has not taken yet: 1.28 s.
pub const SLACK: usize = 32;

/// Wakes the one recognizer when any of its cameras' rings has something for it.
#[derive(Debug, Default)]
pub struct Bell {
    rung: Mutex<bool>,
    condition: Condvar,
}

impl Bell {
    pub fn ring(&self) {
        *lock(&self.rung) = true;
        self.condition.notify_all();
    }

    /// Blocks until it has rung since the last wait, or for `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let rung = lock(&self.rung);
        let (mut rung, _) =
            self.condition.wait_timeout_while(rung, timeout, |rung| !*rung).unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}

/// What the ring hands out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// A window of frames was shown to the caller's closure.
    Hop(Span),
    /// A cut: `lost` frames before the next hop's new ones were in no hop, because they never came or came too fast.
    Gap { lost: u64 },
    /// The camera is closed and everything it gave was handed out.
    Ended,
}

/// Which frames a hop saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    pub first: u64,
    pub last: u64,
    /// When the last frame came into the ring.
    pub taken: Instant,
}

/// What becomes of a hop that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is taken.
    Taken,
    /// It is not made; the next one sees its frames as well.
    WithNext,
    /// It is not made, and its frames are in no hop.
    LeftOut,
}

/// The frames of a hop, oldest first.
pub struct Window<'a> {
    frames: &'a Deque<Entry, { WINDOW + SLACK }>,
    start: usize,
    /// Frames there really are; a recording shorter than the window is looped, as the paper does with short videos.
    real: usize,
    length: usize,
}

impl<'a> Window<'a> {
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// # Panics
    /// Past `len`.
    pub fn frame(&self, index: usize) -> &'a Frame {
        assert!(index < self.length);
        let (front, back) = self.frames.as_slices();
        let i = self.start + index % self.real;
        if i < front.len() { &front[i].frame } else { &back[i - front.len()].frame }
    }
}

/// How a ring hands out its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rhythm {
    /// Frames a hop is shown, at most [`WINDOW`].
    pub window: usize,
    /// Frames from one hop to the next.
    pub hop: usize,
    /// Whether what lies before a hop's frames is carried from hop to hop: the first one is due as soon as there are its
    /// own frames, and is shown fewer than `window` where there are no more. What is left at the end of a recording and
    /// is no whole hop is in none.
    pub carried: bool,
}

/// One camera's ring, shared between its thread and the recognizer.
#[derive(Debug)]
pub struct Ring {
    window: u64,
    hop: u64,
    carried: bool,
    state: Mutex<State>,
    room: Condvar,
    bell: Arc<Bell>,
}

#[derive(Debug)]
struct Entry {
    frame: Frame,
    taken: Instant,
}

#[derive(Debug)]
struct State {
    pace: Pace,
    /// Contiguous numbers, oldest first. Boxed buffers move between here and the camera thread's staging frame, so
    /// that nothing is allocated once the ring is full.
    frames: Deque<Entry, { WINDOW + SLACK }>,
    /// Number of the next frame.
    next: u64,
    /// Number of the first frame since the beginning or the last cut.
    start: u64,
    /// One past the last frame of the next hop, once `start` is known.
    due: u64,
    /// One past the last frame that a hop has seen.
    seen: u64,
    /// Frames lost that the next step has to tell of.
    lost: u64,
    cut: bool,
    closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked while holding the lock has left whole frames behind: nothing here is half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ring {
    /// # Panics
    /// For a window of more than [`WINDOW`] frames, which no network is loaded with: it would be shown fewer than it takes.
    pub fn new(pace: Pace, rhythm: Rhythm, bell: Arc<Bell>) -> Self {
        assert!(rhythm.window <= WINDOW, "a ring of {WINDOW} frames for a window of {}", rhythm.window);
        let window = rhythm.window.max(1) as u64;
        let hop = rhythm.hop.max(1) as u64;
        let carried = rhythm.carried;
        let state = State {
            pace,
            frames: Deque::new(),
            next: 0,
            start: 0,
            due: if carried { hop } else { window },
            seen: 0,
            lost: 0,
            cut: false,
            closed: false,
        };
        Ring { window, hop, carried, state: Mutex::new(state), room: Condvar::new(), bell }
    }

    /// Whether a full ring makes the camera's thread wait; what a source is shows when it is open.
    pub fn set_pace(&self, pace: Pace) {
        lock(&self.state).pace = pace;
    }

    /// Adds the next frame and gives it its number; `frame` gets the buffers of one that has left. Waits for room when
    /// this is a recording. False when the ring was closed.
    pub fn push(&self, frame: &mut Frame) -> bool {
        let mut state = lock(&self.state);
        while self.is_full(&state) && state.oldest() + self.window >= state.due && !state.closed {
            match state.pace {
                Pace::Recorded => state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner),
                Pace::Live => {
                    // The window of the hop that is due loses its oldest frame now: leave that hop out.
                    state.due += self.hop;
                    state.lost += self.hop;
                }
            }
        }
        if state.closed {
            return false;
        }
        frame.number = state.next;
        let taken = Instant::now();
        let evicted = if self.is_full(&state) { state.frames.pop_front() } else { None };
        let mut entry = evicted.unwrap_or_else(|| Entry { frame: blank(frame), taken });
        std::mem::swap(&mut entry.frame, frame);
        entry.taken = taken;
        // There is room: the deque was not full or has just lost its oldest.
        let _ = state.frames.push_back(entry);
        state.next += 1;
        let ready = state.next >= state.due;
        drop(state);
        if ready {
            self.bell.ring();
        }
        true
    }

    /// A cut in the video: `lost` ticks never came, and the next frame has no motion before it. The window begins anew.
    pub fn cut(&self, lost: u64) {
        let mut state = lock(&self.state);
        // What a recording gave before the cut is handed out first.
        while state.pace == Pace::Recorded && !state.closed && self.pending(&state, true).is_some() {
            state.cut = true;
            self.bell.ring();
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.cut = false;
        if state.next == 0 {
            return;
        }
        let unseen = state.next - state.seen.max(state.start);
        state.lost += lost + if state.pace == Pace::Live { unseen } else { 0 };
        state.lost = state.lost.max(1);
        state.frames.clear();
        state.next += lost;
        state.start = state.next;
        state.seen = state.next;
        state.due = state.next + if self.carried { self.hop } else { self.window };
        drop(state);
        self.bell.ring();
    }

    /// No more frames will come; what is there is still handed out.
    pub fn close(&self) {
        lock(&self.state).closed = true;
        self.room.notify_all();
        self.bell.ring();
    }

    /// Whether the next call of [`Ring::take`] has something, and since when it waits: the recognizer takes the oldest
    /// first.
    pub fn waiting_since(&self) -> Option<Instant> {
        let state = lock(&self.state);
        if state.lost > 0 {
            return Some(state.frames.front().map_or_else(Instant::now, |e| e.taken));
        }
        let end = self.pending(&state, state.closed || state.cut)?;
        Some(state.entry(end - 1).map_or_else(Instant::now, |e| e.taken))
    }

    /// Asks what is to become of the hop that is due, if there is one and it is a camera's: a recording has no hop left
    /// out. A hop that is to be taken is what [`Ring::take`] hands out next, unless a gap comes before it.
    pub fn due(&self, fate: impl FnOnce(&Span) -> Fate) -> Option<(Span, Fate)> {
        let mut state = lock(&self.state);
        if state.lost > 0 || state.pace == Pace::Recorded {
            return None;
        }
        let end = self.pending(&state, false)?;
        let span = self.span(&state, end);
        let fate = fate(&span);
        if fate != Fate::Taken {
            state.due = end + self.hop;
        }
        if fate == Fate::LeftOut {
            state.seen = end;
        }
        Some((span, fate))
    }

    /// Hands out the next step, if there is one; for a hop, `see` is shown its frames. The camera's thread waits while
    /// `see` runs: it should copy what it needs and return.
    pub fn take(&self, see: impl FnOnce(&Window)) -> Option<Step> {
        let mut state = lock(&self.state);
        if state.lost > 0 {
            let lost = std::mem::take(&mut state.lost);
            return Some(Step::Gap { lost });
        }
        let flush = state.closed || state.cut;
        let Some(end) = self.pending(&state, flush) else {
            return state.closed.then_some(Step::Ended);
        };
        let span = self.span(&state, end);
        let real = end - span.first;
        see(&Window {
            frames: &state.frames,
            start: (span.first - state.oldest()) as usize,
            real: real as usize,
            length: if self.carried { real } else { self.window } as usize,
        });
        state.seen = end;
        state.due = end + self.hop;
        drop(state);
        self.room.notify_all();
        Some(Step::Hop(span))
    }

    /// The hop that ends before frame `end`.
    fn span(&self, state: &State, end: u64) -> Span {
        let first = end.saturating_sub(self.window).max(state.start);
        let taken = state.entry(end - 1).map_or_else(Instant::now, |e| e.taken);
        Span { first, last: end - 1, taken }
    }

    fn is_full(&self, state: &State) -> bool {
        state.frames.len() as u64 >= self.window + SLACK as u64
    }

    /// One past the last frame of the hop that can be handed out now. `flush`: nothing will follow, so that the frames
    /// after the last hop, or a recording shorter than a window, make a hop of their own.
    fn pending(&self, state: &State, flush: bool) -> Option<u64> {
        if state.next >= state.due {
            Some(state.due)
        } else if flush && !self.carried && state.pace == Pace::Recorded && state.next > state.seen.max(state.start) {
            Some(state.next)
        } else {
            None
        }
    }
}

impl State {
    fn oldest(&self) -> u64 {
        self.next - self.frames.len() as u64
    }

    fn entry(&self, number: u64) -> Option<&Entry> {
        let (front, back) = self.frames.as_slices();
        let i = number.checked_sub(self.oldest())? as usize;
        front.get(i).or_else(|| back.get(i - front.len()))
    }
}

/// Buffers of the same sizes as `frame`'s.
fn blank(frame: &Frame) -> Frame {
    let view = |v: &View| View { rgb: Vec::with_capacity(v.rgb.len()), flow: Vec::with_capacity(v.flow.len()) };
    Frame { number: 0, still: 0, views: frame.views.iter().map(view).collect() }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn ring(pace: Pace, window: usize, hop: usize) -> Ring {
        Ring::new(pace, Rhythm { window, hop, carried: false }, Arc::new(Bell::default()))
    }

    /// A frame whose only pixel tells its place in the order of pushing.
    fn marked(mark: u64) -> Frame {
        Frame { number: 0, still: 0, views: vec![View { rgb: vec![mark as u8], flow: Vec::new() }] }
    }

    fn push(ring: &Ring, marks: std::ops::Range<u64>) {
        for m in marks {
            assert!(ring.push(&mut marked(m)));
        }
    }

    /// Takes everything that is there: for hops (first, last, marks seen), for gaps the count.
    fn drain(ring: &Ring) -> Vec<(Step, Vec<u8>)> {
        let mut steps = Vec::new();
        loop {
            let mut marks = Vec::new();
            match ring.take(|w| marks.extend((0..w.len()).map(|i| w.frame(i).views[0].rgb[0]))) {
                Some(Step::Ended) | None => return steps,
                Some(step) => steps.push((step, marks)),
            }
        }
    }

    fn hops(steps: &[(Step, Vec<u8>)]) -> Vec<(u64, u64)> {
        steps.iter().filter_map(|(s, _)| if let Step::Hop(h) = s { Some((h.first, h.last)) } else { None }).collect()
    }

    #[test]
    fn a_hop_every_8_frames_once_64_are_there() {
        let ring = ring(Pace::Recorded, 64, 8);
        push(&ring, 0..63);
        assert!(drain(&ring).is_empty());
        push(&ring, 63..80);
        let steps = drain(&ring);
        assert_eq!(hops(&steps), [(0, 63), (8, 71), (16, 79)]);
        assert_eq!(steps[1].1, (8..72).collect::<Vec<u8>>());
    }

    #[test]
    fn where_states_are_carried_a_hop_is_shown_its_own_frames_from_the_first_on() {
        let ring = Ring::new(Pace::Recorded, Rhythm { window: 14, hop: 8, carried: true }, Arc::new(Bell::default()));
        push(&ring, 0..7);
        assert!(drain(&ring).is_empty());
        push(&ring, 7..29);
        let steps = drain(&ring);
        assert_eq!(hops(&steps), [(0, 7), (2, 15), (10, 23)]);
        // Fewer than 14 before there are more, and none twice.
        assert_eq!(steps[0].1, (0..8).collect::<Vec<u8>>());
        assert_eq!(steps[2].1, (10..24).collect::<Vec<u8>>());
        // The first hop behind a cut has no frame from before it.
        ring.cut(10);
        push(&ring, 39..48);
        let steps = drain(&ring);
        assert!(matches!(steps[0].0, Step::Gap { .. }), "{steps:?}");
        assert_eq!(hops(&steps), [(39, 46)]);
        // What is no whole hop is in none.
        ring.close();
        assert!(drain(&ring).is_empty());
    }

    #[test]
    fn a_recording_waits_and_loses_nothing() {
        let ring = Arc::new(ring(Pace::Recorded, 64, 8));
        let pusher = thread::spawn({
            let ring = ring.clone();
            move || {
                push(&ring, 0..1000);
                ring.close();
            }
        });
        let mut ends = Vec::new();
        loop {
            match ring.take(|w| assert_eq!(w.len(), 64)) {
                Some(Step::Hop(h)) => {
                    thread::sleep(Duration::from_micros(300));
                    ends.push(h.last + 1);
                }
                Some(Step::Gap { .. }) => panic!("a recording has no gaps"),
                Some(Step::Ended) => break,
                None => thread::yield_now(),
            }
        }
        pusher.join().unwrap();
        assert_eq!(ends, (64..=1000).step_by(8).collect::<Vec<u64>>());
    }

    #[test]
    fn a_camera_never_waits_and_the_loss_is_counted() {
        let ring = ring(Pace::Live, 64, 8);
        push(&ring, 0..64 + SLACK as u64);
        // The next frame pushes out frame 0, which the hop over 0..63 needs: that hop is left out.
        push(&ring, 96..97);
        let steps = drain(&ring);
        assert_eq!(steps[0].0, Step::Gap { lost: 8 });
        assert_eq!(hops(&steps), [(8, 71), (16, 79), (24, 87), (32, 95)]);
        assert_eq!(steps[1].1, (8..72).collect::<Vec<u8>>());
    }

    #[test]
    fn hops_left_out_and_hops_made_are_all_hops_there_were() {
        let ring = ring(Pace::Live, 64, 8);
        let (mut made, mut lost, mut state) = (0, 0, 1u64);
        for m in 0..100_000 {
            push(&ring, m..m + 1);
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if (state >> 40) % 50 == 0 {
                for (step, _) in drain(&ring) {
                    match step {
                        Step::Hop(_) => made += 1,
                        Step::Gap { lost: n } => lost += n,
                        Step::Ended => {}
                    }
                }
            }
        }
        for (step, _) in drain(&ring) {
            match step {
                Step::Hop(_) => made += 1,
                Step::Gap { lost: n } => lost += n,
                Step::Ended => {}
            }
        }
        assert!(lost > 0);
        assert_eq!(made + lost / 8, (100_000 - 64) / 8 + 1);
    }

    #[test]
    fn a_hop_may_be_left_to_the_next_or_left_out() {
        let ring = ring(Pace::Live, 64, 8);
        push(&ring, 0..63);
        assert_eq!(ring.due(|_| panic!("none is due")), None);
        push(&ring, 63..96);
        let mut fates = [Fate::Taken, Fate::Taken, Fate::WithNext, Fate::LeftOut].into_iter();
        let mut due = || ring.due(|_| fates.next().unwrap()).map(|(span, fate)| (span.last, fate));
        assert_eq!(due(), Some((63, Fate::Taken)));
        // Asked again: it is still there.
        assert_eq!(due(), Some((63, Fate::Taken)));
        assert!(matches!(ring.take(|_| ()), Some(Step::Hop(hop)) if hop.last == 63));
        assert_eq!(due(), Some((71, Fate::WithNext)));
        assert_eq!(due(), Some((79, Fate::LeftOut)));
        assert_eq!(hops(&drain(&ring)), [(24, 87), (32, 95)]);
        // What was left out is not lost a second time.
        ring.cut(0);
        assert_eq!(ring.take(|_| ()), Some(Step::Gap { lost: 1 }));
    }

    #[test]
    fn a_hop_of_a_recording_is_never_left_out() {
        let ring = ring(Pace::Recorded, 64, 8);
        push(&ring, 0..80);
        assert_eq!(ring.due(|_| Fate::LeftOut), None);
        assert_eq!(hops(&drain(&ring)), [(0, 63), (8, 71), (16, 79)]);
    }

    #[test]
    fn the_last_frames_of_a_recording_are_seen() {
        let ring = ring(Pace::Recorded, 64, 8);
        push(&ring, 0..77);
        ring.close();
        let steps = drain(&ring);
        assert_eq!(hops(&steps), [(0, 63), (8, 71), (13, 76)]);
        assert_eq!(steps[2].1, (13..77).collect::<Vec<u8>>());
        assert_eq!(ring.take(|_| ()), Some(Step::Ended));
    }

    #[test]
    fn a_short_recording_is_looped() {
        let ring = ring(Pace::Recorded, 64, 8);
        push(&ring, 0..10);
        ring.close();
        let steps = drain(&ring);
        assert_eq!(hops(&steps), [(0, 9)]);
        assert_eq!(steps[0].1, (0..64).map(|i| i % 10).collect::<Vec<u8>>());
    }

    #[test]
    fn an_empty_recording_just_ends() {
        let ring = ring(Pace::Recorded, 64, 8);
        ring.close();
        assert_eq!(ring.take(|_| ()), Some(Step::Ended));
        assert!(!ring.push(&mut marked(0)));
    }

    #[test]
    fn a_cut_begins_the_window_anew() {
        let ring = ring(Pace::Live, 64, 8);
        push(&ring, 0..70);
        assert_eq!(hops(&drain(&ring)), [(0, 63)]);
        ring.cut(100);
        push(&ring, 0..72);
        let steps = drain(&ring);
        // 6 frames after the last hop and 100 ticks that never came.
        assert_eq!(steps[0].0, Step::Gap { lost: 106 });
        assert_eq!(hops(&steps), [(170, 233), (178, 241)]);
    }

    #[test]
    fn a_cut_in_a_recording_hands_out_what_came_before_it() {
        let ring = Arc::new(ring(Pace::Recorded, 64, 8));
        let pusher = thread::spawn({
            let ring = ring.clone();
            move || {
                push(&ring, 0..70);
                ring.cut(0);
                push(&ring, 100..110);
                ring.close();
            }
        });
        let mut seen = Vec::new();
        loop {
            match ring.take(|_| ()) {
                Some(Step::Ended) => break,
                Some(step) => seen.push(step),
                None => thread::yield_now(),
            }
        }
        pusher.join().unwrap();
        let spans: Vec<_> =
            seen.iter().filter_map(|s| if let Step::Hop(h) = s { Some((h.first, h.last)) } else { None }).collect();
        assert_eq!(spans, [(0, 63), (6, 69), (70, 79)]);
        assert_eq!(seen.iter().filter(|s| matches!(s, Step::Gap { .. })).count(), 1);
    }

    #[test]
    fn buffers_go_round() {
        let ring = ring(Pace::Live, 64, 8);
        push(&ring, 0..96);
        let mut frame = marked(96);
        let buffer = frame.views[0].rgb.as_ptr();
        assert!(ring.push(&mut frame));
        assert_ne!(frame.views[0].rgb.as_ptr(), buffer);
        assert_eq!(frame.views[0].rgb, [0]);
    }
}
