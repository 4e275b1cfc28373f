//! `actiond check`: every error of a config, with line and column; no camera is opened.

use std::path::PathBuf;

use crate::{
    config::Plan,
    decide::Decider,
    error::{Error, Result},
    inference,
    model::Model,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: actiond check actiond.toml && echo good")]
pub struct Args {
    /// The config file to check, and the model that it names.
    config: PathBuf,
}

pub fn run(args: &Args) -> Result<()> {
    let plan = load(&args.config)?;
    let model = Model::load(&plan.model)?;
    let hop = model.hop(plan.hop).map_err(|e| e.context(format!("{}: [model]", args.config.display())))?;
    Decider::new(&model, &plan.events, hop).map_err(|e| e.context(format!("{}: [events]", args.config.display())))?;
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
    ))
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
