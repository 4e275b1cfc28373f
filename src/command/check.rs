//! `actiond check`: every error of a config, with line and column; no camera is opened.

use std::path::PathBuf;

use crate::{
    config::Plan,
    decide::Decider,
    error::{Error, Result},
    inference,
    model::Model,
    publish,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: actiond check actiond.toml && echo good")]
pub struct Args {
    /// The config file to check, and the model that it names.
    config: PathBuf,
    /// Send a test event (camera `check`, label `test`) through every sink of the config and wait until it is acknowledged.
    #[arg(long)]
    publish: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let plan = load(&args.config)?;
    let model = Model::load(&plan.model).map_err(|e| e.context(format!("{}: [model]", args.config.display())))?;
    let hop = model.hop(plan.hop).map_err(|e| e.context(format!("{}: [model]", args.config.display())))?;
    Decider::new(&model, &plan.events, hop).map_err(|e| e.context(format!("{}: [events]", args.config.display())))?;
    plan.publish.check(&model.labels).map_err(|e| e.context(args.config.display()))?;
    let mode = match plan.mode {
        Some(mode) => {
            inference::check_mode(&model, mode, hop)
                .map_err(|e| e.context(format!("{}: [model]", args.config.display())))?;
            mode
        }
        None => inference::natural_mode(&model, hop).0,
    };
    super::say(&format!(
        "{}: good. {} camera{}, model {} ({} labels), mode {}, a hop of {} frames.",
        args.config.display(),
        plan.cameras.len(),
        if plan.cameras.len() == 1 { "" } else { "s" },
        model.manifest.name,
        model.labels.len(),
        mode.name(),
        hop,
    ))?;
    if args.publish { publish(&plan) } else { Ok(()) }
}

fn publish(plan: &Plan) -> Result<()> {
    if plan.publish.is_empty() {
        return Err(Error::config(
            "there is no [mqtt], [[webhook]] or [[command]] in it: nothing to send a test event to",
        ));
    }
    let results = publish::test(&plan.publish, &plan.device)?;
    let mut failed = 0;
    for (target, result) in &results {
        match result {
            Ok(said) => super::say(&format!("✓ {target}: {said}"))?,
            Err(e) => {
                failed += 1;
                super::say(&format!("✗ {target}: {e}"))?;
            }
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(Error::unavailable(format!("{failed} of {} sinks did not acknowledge the test event", results.len()))),
    }
}

/// Reads a config; where it has errors, prints all but the last, which is returned.
pub fn load(path: &std::path::Path) -> Result<Plan> {
    Plan::load(path).map_err(|mut errors| {
        let last = errors.pop().unwrap_or_else(|| Error::internal("a config failed without an error"));
        for e in &errors {
            eprintln!("actiond: {e}");
        }
        last
    })
}
