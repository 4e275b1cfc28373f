//! Any text as a model's manifest: what passes the checks must be fit for what is made of it.
#![no_main]

use std::path::PathBuf;

use actiond::{
    config,
    decide::{self, Decider, HopScores, Scores},
    model::{Manifest, Model},
    scale,
};

actiond_fuzz::fuzz_target!(|text: &str| {
    actiond_fuzz::bounded();
    let Ok(manifest) = config::parse_toml::<Manifest>(text, "model.toml") else { return };
    // Those of the seeds.
    let labels = ["nothing", "walking", "falling", "waving"].map(String::from).to_vec();
    let model = Model { folder: PathBuf::from("/nowhere"), manifest, labels };
    if model.check().is_err() {
        return;
    }
    let (views, of_stream) = scale::views(&model.manifest);
    assert!(of_stream.iter().all(|&view| view < views.len()));
    for stream in &model.manifest.streams {
        assert!(stream.reach() >= 1 && stream.shape(stream.frames).iter().product::<usize>() > 0);
    }
    let logits = vec![[0.5f32, 3.0, -1.0, 0.0]; model.manifest.streams.len()];
    let logits: Vec<&[f32]> = logits.iter().map(|l| &l[..]).collect();
    let mut scores = Scores::default();
    let fused = decide::fuse(&model.manifest.fusion, &model.stream_names(), &model.labels, &logits, &mut scores);
    let Ok(mut decider) = Decider::new(&model, &Default::default(), 8) else { return };
    if fused.is_ok() {
        assert!(scores.fused.iter().all(|score| (0.0..=1.001).contains(score)), "{scores:?}");
        for last in (63..2000).step_by(8) {
            decider.step(&HopScores { first_frame: last - 63, last_frame: last, scores: &scores });
        }
    }
    decider.finish(2000);
});
