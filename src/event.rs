//! An event and its JSON, version 1: a line of the journal, and what every subscriber gets. Fields may be added; none is
//! renamed, removed or given another meaning.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cadence::FPS;
pub use crate::decide::Phase;

/// The version of the JSON that this program writes, and the only one that it reads.
pub const VERSION: u32 = 1;

/// An action that began, goes on, or has ended. The phases of one action have the same `id`, `start` and `first_frame`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub v: u32,
    /// See [`id`].
    pub id: String,
    /// Place in the journal, from 1, with none left out; 0 until it stands there.
    pub seq: u64,
    pub device: String,
    pub camera: String,
    pub phase: Phase,
    pub label: String,
    /// What was decided by, at this moment: the fused score of the newest hop, or the mean of the last few where the
    /// label is decided so. At the end it is the score that closed the event, so it is low.
    #[serde(serialize_with = "four_decimals")]
    pub score: f32,
    /// The highest that `score` has been in this event.
    #[serde(serialize_with = "four_decimals")]
    pub peak: f32,
    /// The best labels of the newest hop, best first.
    pub top: Vec<Top>,
    /// What each stream alone gives this label in the newest hop.
    #[serde(serialize_with = "four_decimals_each")]
    pub streams: BTreeMap<String, f32>,
    /// When the action began; not when it was noticed.
    #[serde(serialize_with = "milliseconds")]
    pub start: Timestamp,
    /// When the action ended; null while it goes on.
    #[serde(serialize_with = "milliseconds_or_null")]
    pub end: Option<Timestamp>,
    /// The same two in seconds of the source's own time.
    #[serde(serialize_with = "four_decimals_wide")]
    pub start_s: f64,
    #[serde(serialize_with = "four_decimals_or_null")]
    pub end_s: Option<f64>,
    /// The action's first frame, in ticks of 1/25 s since the camera began.
    pub first_frame: u64,
    /// The action's last frame; while it goes on, the newest that was looked at.
    pub last_frame: u64,
    /// Name and version of the model.
    pub model: String,
    pub backend: String,
    pub precision: String,
    pub mode: String,
    /// Frames from one hop to the next.
    pub hop: usize,
    /// From the moment when the newest frame that the decision used was there to the moment when the event was handed
    /// to the journal: decoding is before it, waiting for the recognizer and inference are in it. The time that a window
    /// takes to fill with an action is not: that is `start` to there.
    pub delay_ms: u64,
    pub flags: Vec<Flag>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Top {
    pub label: String,
    #[serde(serialize_with = "four_decimals")]
    pub score: f32,
}

/// What a reader should know before trusting an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flag {
    /// Delivered long after it happened.
    Late,
    /// The picture stood still.
    Still,
    /// A cut in the video is still within reach of the scores.
    Warming,
    /// Frames were left out, or a weaker engine was used.
    Degraded,
    /// The journal had no room for it.
    Volatile,
}

impl Event {
    /// How long the action took, or has taken so far.
    pub fn duration(&self) -> SignedDuration {
        match self.end {
            Some(end) => end.duration_since(self.start),
            None => {
                let frames = self.last_frame.saturating_add(1).saturating_sub(self.first_frame);
                SignedDuration::from_millis((frames.saturating_mul(1000) / FPS).min(i64::MAX as u64) as i64)
            }
        }
    }

    /// When the action was last seen.
    pub fn seen_until(&self) -> Timestamp {
        self.start.checked_add(self.duration()).unwrap_or(self.start)
    }
}

/// The id of an action: a ULID of the start's milliseconds and a hash of what else makes the action this one. Ids sort by
/// time, and a recording that is played again gives the same.
pub fn id(start: Timestamp, device: &str, camera: &str, label: &str, first_frame: u64) -> String {
    let mut hash = Sha256::new();
    for part in [device, camera, label] {
        // With its length before it, so that no two different lists of parts read the same.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.update(first_frame.to_le_bytes());
    let random = hash.finalize()[..10].iter().fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    let time = start.as_millisecond().clamp(0, (1 << 48) - 1) as u128;
    crockford(time << 80 | random)
}

/// Base 32 without the letters I, L, O and U: 26 characters, the first of which holds 3 bits.
fn crockford(bits: u128) -> String {
    const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    (0..26).rev().map(|i| char::from(DIGITS[(bits >> (5 * i)) as usize & 31])).collect()
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn four_decimals<S: serde::Serializer>(value: &f32, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64(rounded(f64::from(*value)))
}

fn four_decimals_wide<S: serde::Serializer>(value: &f64, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64(rounded(*value))
}

fn four_decimals_or_null<S: serde::Serializer>(value: &Option<f64>, s: S) -> Result<S::Ok, S::Error> {
    value.map(rounded).serialize(s)
}

fn four_decimals_each<S: serde::Serializer>(values: &BTreeMap<String, f32>, s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(values.iter().map(|(name, value)| (name, rounded(f64::from(*value)))))
}

fn milliseconds<S: serde::Serializer>(time: &Timestamp, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&format_args!("{time:.3}"))
}

fn milliseconds_or_null<S: serde::Serializer>(time: &Option<Timestamp>, s: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => milliseconds(time, s),
        None => s.serialize_none(),
    }
}

/// An event to test with.
#[cfg(test)]
pub(crate) fn sample(seq: u64) -> Event {
    let start = "2026-11-24T01:02:03.456Z".parse().unwrap();
    Event {
        v: VERSION,
        id: id(start, "dock-3", "door", "walking", 100),
        seq,
        device: "dock-3".into(),
        camera: "door".into(),
        phase: Phase::Start,
        label: "walking".into(),
        score: 0.8125,
        peak: 0.9,
        top: vec![Top { label: "walking".into(), score: 0.8125 }, Top { label: "running".into(), score: 0.1 }],
        streams: BTreeMap::from([("rgb".into(), 0.7), ("flow".into(), 0.925)]),
        start,
        end: None,
        start_s: 4.0,
        end_s: None,
        first_frame: 100,
        last_frame: 139,
        model: "default@1".into(),
        backend: "tract".into(),
        precision: "f32".into(),
        mode: "dense".into(),
        hop: 8,
        delay_ms: 120,
        flags: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The schema, declared again: what scripts of users rely on. If this test has to change, the version does too,
    /// unless a field was only added.
    #[test]
    fn the_json_of_version_1() {
        assert_eq!(
            serde_json::to_string(&sample(7)).unwrap(),
            concat!(
                r#"{"v":1,"id":"01M85H5Z60EY8PPCFPP1BZGYTW","seq":7,"device":"dock-3","camera":"door","phase":"start","#,
                r#""label":"walking","score":0.8125,"peak":0.9,"#,
                r#""top":[{"label":"walking","score":0.8125},{"label":"running","score":0.1}],"#,
                r#""streams":{"flow":0.925,"rgb":0.7},"start":"2026-11-24T01:02:03.456Z","end":null,"#,
                r#""start_s":4.0,"end_s":null,"first_frame":100,"last_frame":139,"model":"default@1","#,
                r#""backend":"tract","precision":"f32","mode":"dense","hop":8,"delay_ms":120,"flags":[]}"#
            )
        );
        let mut ended = sample(8);
        ended.phase = Phase::End;
        ended.end = Some("2026-11-24T01:02:05Z".parse().unwrap());
        ended.end_s = Some(5.54);
        ended.flags = vec![Flag::Late, Flag::Still, Flag::Warming, Flag::Degraded, Flag::Volatile];
        let json = serde_json::to_string(&ended).unwrap();
        assert!(json.contains(r#""phase":"end""#), "{json}");
        assert!(json.contains(r#""end":"2026-11-24T01:02:05.000Z""#), "{json}");
        assert!(json.contains(r#""end_s":5.54"#), "{json}");
        assert!(json.contains(r#""flags":["late","still","warming","degraded","volatile"]"#), "{json}");
    }

    #[test]
    fn what_was_written_reads_back_and_writes_the_same() {
        let mut event = sample(1);
        // Numbers that have no short form in f32 or binary at all.
        for (i, score) in [1.0 / 3.0, 0.1, 0.99995, 1e-7, 0.12345679].into_iter().enumerate() {
            event.score = score;
            event.start_s = i as f64 / 25.0 + 1e6;
            let line = serde_json::to_string(&event).unwrap();
            let read: Event = serde_json::from_str(&line).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), line);
            assert!((read.score - score).abs() <= 5.1e-5);
            let decimals = line.split("\"score\":").nth(1).unwrap().split(',').next().unwrap();
            assert!(decimals.len() <= "0.1234".len(), "{decimals}");
        }
        event.score = 0.25;
        event.start_s = 4.0;
        assert_eq!(serde_json::from_str::<Event>(&serde_json::to_string(&event).unwrap()).unwrap(), event);
    }

    #[test]
    fn fields_of_a_later_writer_are_passed_over() {
        let line = serde_json::to_string(&sample(1)).unwrap().replace("\"hop\":8", "\"hop\":8,\"mood\":\"good\"");
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), sample(1));
    }

    #[test]
    fn crockford_knows_the_specification_s_examples() {
        assert_eq!(crockford(0), "00000000000000000000000000");
        assert_eq!(crockford(u128::MAX), "7ZZZZZZZZZZZZZZZZZZZZZZZZZ");
        // The time of the ULID specification's example.
        assert!(crockford(1_469_922_850_259u128 << 80).starts_with("01ARZ3NDEK"));
    }

    #[test]
    fn an_id_tells_every_part_apart_and_sorts_by_time() {
        let t: Timestamp = "2026-11-24T01:02:03.456Z".parse().unwrap();
        let one = id(t, "a", "b", "c", 1);
        assert_eq!(one, id(t, "a", "b", "c", 1));
        let later = t + SignedDuration::from_millis(1);
        let others = [
            id(t, "x", "b", "c", 1),
            id(t, "a", "x", "c", 1),
            id(t, "a", "b", "x", 1),
            id(t, "a", "b", "c", 2),
            id(t, "ab", "", "c", 1),
        ];
        assert!(others.iter().all(|o| *o != one && o[..10] == one[..10]), "{others:?}");
        assert!(id(later, "a", "b", "c", 1) > one);
        assert_eq!(&id("1931-01-01T00:00Z".parse().unwrap(), "a", "b", "c", 1)[..10], "0000000000");
    }

    #[test]
    fn an_open_event_has_lasted_until_its_newest_frame() {
        let mut event = sample(1);
        assert_eq!(event.duration(), SignedDuration::from_millis(1600));
        event.end = Some(event.start + SignedDuration::from_secs(3));
        assert_eq!(event.duration(), SignedDuration::from_secs(3));
        assert_eq!(event.seen_until(), event.start + SignedDuration::from_secs(3));
        // Whatever a journal says.
        (event.end, event.last_frame, event.first_frame) = (None, u64::MAX, 0);
        event.seen_until();
        event.first_frame = u64::MAX;
        assert_eq!(event.duration(), SignedDuration::ZERO);
    }
}
