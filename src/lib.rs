//! actiond recognizes human actions in live video, on the device.
//!
//! # The path of a frame
//!
//! ```text
//! source.next ─▶ intake ────────────────────────────▶ ring.push      one thread a camera
//!                 cadence: 25 fps by timestamp
//!                 scale:   to the model's sizes
//!                 flow:    between two distinct pictures
//!
//! ring.take ──▶ input ──▶ network.step ──▶ decide ──▶ journal        one thread for all cameras
//!  a hop and     tensors   the streams'     fused,
//!  its window              logits           smoothed, opened, closed
//!
//! journal ──▶ inbox ──▶ a sink           one thread for all network
//!              by the sink's cursor, which moves when the far end acknowledged
//! ```
//!
//! A camera's newest picture wins and each drop is counted; a recording waits, and nothing of it is lost. That is
//! decided in two places only: in a [`source`], and in the [`ring`].
//!
//! # The rooms
//!
//! | room | what it knows |
//! | --- | --- |
//! | [`command`] | one file a subcommand; [`command::run`] holds the only wiring of threads |
//! | [`config`] | the config file as typed, and the plan as checked |
//! | [`source`] | where pictures come from: GStreamer, USB, recordings |
//! | [`camera`] | one camera's thread: opening, watching, opening again |
//! | [`mask`] | privacy masks: parts of the picture that nothing sees |
//! | [`fault`] | a picture that comes and shows nothing: frozen, black, covered |
//! | [`intake`] | pictures in, frames out: [`cadence`], [`scale`], [`flow`] |
//! | [`still`] | whether anything moves, and what is left out while nothing does |
//! | [`ring`] | the rolling 64-frame window, its hops and its gaps |
//! | [`model`] | the manifest: what a model is, with no code per architecture |
//! | [`compile`] | the window compiler: a dense graph becomes one that computes only what a hop brings |
//! | [`inference`] | ONNX Runtime's providers, and tract |
//! | [`recognize`] | the loop over hops |
//! | [`supervise`] | what the service manager is told: ready, alive, busy |
//! | [`load`] | what is left out when the machine cannot keep up: pure |
//! | [`decide`] | scores to events: pure |
//! | [`tell`] | what is decided, as events with names and dates: pure |
//! | [`event`], [`journal`] | an event, and where it is kept |
//! | [`publish`] | from the journal to MQTT, Home Assistant, webhooks, commands |
//! | [`record`] | scores and frames, kept; scores decided anew |
//! | [`metrics`], [`web`] | the daemon's numbers, and who may ask for them |
//! | [`secret`] | passwords and tokens, and where they come from |
//! | [`clip`] | whole clips, for `infer` and `eval` |

pub mod cadence;
pub mod camera;
pub mod clip;
pub mod command;
pub mod compile;
pub mod config;
pub mod decide;
pub mod error;
pub mod event;
pub mod fault;
pub mod flow;
pub mod frame;
pub mod inference;
pub mod input;
pub mod intake;
pub mod journal;
pub mod load;
pub mod mask;
pub mod metrics;
pub mod model;
pub mod publish;
pub mod recognize;
pub mod record;
pub mod ring;
pub mod scale;
pub mod secret;
pub mod source;
pub mod still;
pub mod supervise;
pub mod tell;
pub mod time;
pub mod web;
