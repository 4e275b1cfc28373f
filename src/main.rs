use std::io::Write;

use actiond::command::{bench, check, compile, doctor, eval, events, infer, replay, run, tune};
use clap::Parser;

/// Recognizes human actions live in video, on the device.
#[derive(Parser)]
#[command(version, max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Watch cameras or recordings and journal the actions in them
    Run(run::Args),
    /// Decide recorded scores anew, with the same settings or others
    Replay(replay::Args),
    /// Propose thresholds that fit what truly happened, from recorded scores
    Tune(tune::Args),
    /// Check a config: every error with line and column, no camera opened
    Check(check::Args),
    /// Tell what this board has, what is missing, and how to mend it
    Doctor(doctor::Args),
    /// Score one clip: logits and the best labels, each stream and fused
    Infer(infer::Args),
    /// Measure accuracy on a folder of labelled clips
    Eval(eval::Args),
    /// Measure what this machine does with a model: each stage, and how many live cameras
    Bench(bench::Args),
    /// Write a model's graphs for a mode that computes only what is new, and tell what that saves
    Compile(compile::Args),
    /// Read the journal
    Events(events::Args),
}

fn main() {
    let arguments = Arguments::parse();
    // GStreamer, ONNX Runtime and tract log in their own words; what concerns the user we say ourselves.
    let filter = env_logger::Env::default().default_filter_or("actiond=info,warn,tract=error");
    env_logger::Builder::from_env(filter).format_target(false).init();
    let result = match arguments.command {
        Command::Run(args) => run::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Infer(args) => infer::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Compile(args) => compile::run(&args),
        Command::Events(args) => events::run(&args),
    };
    let code = match result {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("actiond: {e}");
            i32::from(e.exit_code())
        }
    };
    let _ = std::io::stdout().flush();
    // All that is ours has been closed. The libraries' destructors that `exit` would run wait for threads that may never
    // end (a pipeline that was left to itself), or take away what such a thread still uses.
    signal_hook::low_level::exit(code);
}
