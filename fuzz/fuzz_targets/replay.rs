//! Any bytes as a recording of scores, as they are and with right checksums: what can be read is decided and told.
#![no_main]

use actiond::{
    error::Kind,
    event::Event,
    record::{self, Reader},
};

actiond_fuzz::fuzz_target!(|bytes: &[u8]| {
    actiond_fuzz::bounded();
    replay(bytes);
    replay(&summed(bytes));
});

fn replay(bytes: &[u8]) {
    let mut reader = match Reader::new(bytes, "x.rec".into()) {
        Ok(reader) => reader,
        Err(e) => return assert_eq!(e.kind(), Kind::Config, "{e}"),
    };
    let labels = reader.header().labels.clone();
    let mut tell = |event: &mut Event| {
        assert!(labels.contains(&event.label));
        // A line of a journal that nobody could read would be lost.
        let json = serde_json::to_vec(event).expect("JSON");
        let again: Event = serde_json::from_slice(&json).expect("an event again");
        assert_eq!((&again.id, again.phase, again.start_s), (&event.id, event.phase, again.start_s));
        let _ = event.seen_until();
        Ok(())
    };
    if let Err(e) = record::replay(&mut reader, None, &mut tell) {
        // A manifest or settings of anybody's making.
        assert!(matches!(e.kind(), Kind::Config | Kind::Model), "{e}");
    }
}

/// With the right checksum in each piece, which no fuzzer guesses.
fn summed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = b"actiond scores 1\n".len();
    while let Some(start) = bytes.get(at..at + 8) {
        let length = u32::from_le_bytes([start[0], start[1], start[2], start[3]]) as usize;
        let Some(end) = (at + 8).checked_add(length).filter(|end| *end <= bytes.len()) else { break };
        let sum = crc32fast::hash(&bytes[at + 8..end]).to_le_bytes();
        bytes[at + 4..at + 8].copy_from_slice(&sum);
        at = end;
    }
    bytes
}
