//! One file a subcommand: its arguments beside the code that it runs.

pub mod check;
pub mod doctor;
pub mod eval;
pub mod events;
pub mod infer;
pub mod run;
mod timeline;
