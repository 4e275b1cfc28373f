//! ONNX Runtime's execution providers: TensorRT, CUDA, OpenVINO, CPU. The library is looked for at run time, so that one
//! binary serves boards with and without it.
//!
//! A provider either runs the whole graph or is an error: left to itself, ONNX Runtime takes its CPU provider for what
//! another one failed to register or can't run, and says nothing.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use ort::{
    environment::Environment,
    ep::{CPU, CUDA, ExecutionProviderDispatch, OpenVINO, TensorRT},
    logging::LogLevel,
    session::{Session, SessionInputValue, builder::GraphOptimizationLevel},
    value::{DynValue, TensorRef},
};

use super::{
    Availability, Backend, LoadOptions, Network, Tensor, file,
    graph::Graph,
    streams::{Engine, Prepared, Streams},
};
use crate::{
    error::{Error, Result},
    model::{Model, Precision, Stream},
};

/// One execution provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnnxRuntime {
    TensorRt,
    Cuda,
    OpenVino,
    Cpu,
}

const ALL: [OnnxRuntime; 4] = [OnnxRuntime::TensorRt, OnnxRuntime::Cuda, OnnxRuntime::OpenVino, OnnxRuntime::Cpu];

impl OnnxRuntime {
    pub fn by_name(name: &str) -> Option<Self> {
        ALL.into_iter().find(|p| p.name() == name)
    }

    /// The precisions that it is good at, the best first: ONNX Runtime's CPU kernels are slower in int8 than in f32.
    fn preferred(self) -> &'static [Precision] {
        match self {
            OnnxRuntime::TensorRt | OnnxRuntime::OpenVino => &[Precision::Int8, Precision::F16, Precision::F32],
            OnnxRuntime::Cuda => &[Precision::F16, Precision::F32],
            OnnxRuntime::Cpu => &[Precision::F32, Precision::Int8],
        }
    }

    fn provider(self, precision: Precision, threads: usize) -> ExecutionProviderDispatch {
        let provider = match self {
            OnnxRuntime::TensorRt => {
                let engines = cache_folder("tensorrt");
                TensorRT::default()
                    .with_fp16(precision != Precision::F32)
                    .with_int8(precision == Precision::Int8)
                    // An engine takes minutes to build: once for each model and board.
                    .with_engine_cache(true)
                    .with_engine_cache_path(&engines)
                    .with_timing_cache(true)
                    .with_timing_cache_path(engines)
                    .build()
            }
            OnnxRuntime::Cuda => CUDA::default().build(),
            // FP32 is the precision of what is not quantized: on a processor with bf16 OpenVINO would take that.
            OnnxRuntime::OpenVino => {
                OpenVINO::default().with_device_type("CPU").with_precision("FP32").with_num_threads(threads).build()
            }
            OnnxRuntime::Cpu => CPU::default().build(),
        };
        provider.error_on_failure()
    }

    /// What the provider needs beside libonnxruntime itself.
    fn library(self) -> Option<&'static str> {
        match self {
            OnnxRuntime::TensorRt => Some("libonnxruntime_providers_tensorrt.so"),
            OnnxRuntime::Cuda => Some("libonnxruntime_providers_cuda.so"),
            OnnxRuntime::OpenVino => Some("libonnxruntime_providers_openvino.so"),
            OnnxRuntime::Cpu => None,
        }
    }

    /// Where the provider's library would have to be, if it is not there.
    fn missing(self, runtime: &Runtime) -> Option<PathBuf> {
        let path = runtime.path.canonicalize().unwrap_or_else(|_| runtime.path.clone()).with_file_name(self.library()?);
        (!path.exists()).then_some(path)
    }

    fn mend(self) -> &'static str {
        match self {
            OnnxRuntime::TensorRt | OnnxRuntime::Cuda => {
                "on a Jetson install NVIDIA's onnxruntime-gpu for its JetPack and set ORT_DYLIB_PATH to its libonnxruntime.so"
            }
            OnnxRuntime::OpenVino | OnnxRuntime::Cpu => "run scripts/setup, or set ORT_DYLIB_PATH to a libonnxruntime.so",
        }
    }
}

impl Backend for OnnxRuntime {
    fn name(&self) -> &'static str {
        match self {
            OnnxRuntime::TensorRt => "tensorrt",
            OnnxRuntime::Cuda => "cuda",
            OnnxRuntime::OpenVino => "openvino",
            OnnxRuntime::Cpu => "cpu",
        }
    }

    fn load(&self, model: &Model, options: &LoadOptions) -> Result<Box<dyn Network>> {
        let runtime = runtime()?;
        if let Some(path) = self.missing(runtime) {
            let what = format!("the ONNX Runtime here has no such provider: {} is missing; {}", path.display(), self.mend());
            return Err(Error::unavailable(what));
        }
        let provider = *self;
        let threads = options.threads();
        let streams = Streams::new(model, |stream| {
            let (path, precision) = file(model, stream, provider.preferred(), options)?;
            let graph = Graph::read(&path, stream, model.labels.len())?;
            let any_length = graph.any_length(stream);
            let stream = stream.clone();
            let build = move |frames| Compiled::new(provider, runtime, &graph, &stream, frames, precision, threads);
            Ok(Prepared { precision, any_length, build: Box::new(build) })
        })?;
        Ok(Box::new(streams))
    }
}

/// The library, loaded once for the process.
struct Runtime {
    environment: Environment,
    path: PathBuf,
}

fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::result::Result<Runtime, String>> = OnceLock::new();
    let loaded = RUNTIME.get_or_init(|| {
        let path = find().ok_or_else(|| {
            "libonnxruntime.so is not here; run scripts/setup, or set ORT_DYLIB_PATH to one".to_owned()
        })?;
        let cannot = |e: &dyn std::fmt::Display| format!("cannot load ONNX Runtime from {}: {e}", path.display());
        let environment = ort::init_from(&path)
            .map_err(|e| cannot(&e))?
            .with_name("actiond")
            .with_telemetry(false)
            .with_logger(Arc::new(|level, _category, _id, _location, message: &str| {
                let level = match level {
                    LogLevel::Fatal | LogLevel::Error => log::Level::Warn,
                    _ => log::Level::Debug,
                };
                log::log!(target: "onnxruntime", level, "{message}");
            }))
            .build()
            .map_err(|e| cannot(&e))?;
        Ok(Runtime { environment, path })
    });
    loaded.as_ref().map_err(|e| Error::unavailable(e.clone()))
}

/// `ORT_DYLIB_PATH` alone where it is set; else beside the binary, in the `runtime` folder that scripts/setup fills, and
/// where the system keeps its libraries.
fn find() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        let path = PathBuf::from(path);
        return path.exists().then_some(path);
    }
    let mut folders = Vec::new();
    if let Ok(exe) = std::env::current_exe() {
        // bin/actiond beside lib/, and target/release/actiond (or deps/test) in the source tree.
        for folder in exe.ancestors().skip(1).take(4) {
            folders.extend([folder.join("lib"), folder.join("runtime/onnxruntime")]);
        }
    }
    folders.push("runtime/onnxruntime".into());
    let multiarch = format!("{}-linux-gnu", std::env::consts::ARCH);
    folders.extend(["/usr/local/lib".into(), PathBuf::from("/usr/lib").join(multiarch), "/usr/lib".into()]);
    folders.iter().find_map(|folder| library_in(folder))
}

/// `libonnxruntime.so`, or the newest with a version behind its name.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let names = entries.filter_map(|e| e.ok()).map(|e| e.path());
    names.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libonnxruntime.so"))).max()
}

fn cache_folder(of: &str) -> String {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache")));
    let folder = base.unwrap_or_else(std::env::temp_dir).join("actiond").join(of);
    // A folder that can't be made is told of by the provider, which then builds its engine each time.
    let _ = std::fs::create_dir_all(&folder);
    folder.display().to_string()
}

pub(super) fn availability() -> Vec<Availability> {
    let runtime = runtime();
    ALL.into_iter()
        .map(|provider| {
            let (usable, found) = match runtime {
                Err(ref e) => (false, e.to_string()),
                Ok(runtime) => match provider.missing(runtime) {
                    Some(path) => (false, format!("{} is missing", path.display())),
                    None => match try_provider(provider, runtime) {
                        Ok(()) => (true, format!("{} ({})", runtime.path.display(), version(ort::info()))),
                        Err(e) => (false, e),
                    },
                },
            };
            let mend = (!usable).then(|| provider.mend().to_owned());
            Availability { name: provider.name(), usable, found, mend }
        })
        .collect()
}

/// Registers the provider with a session builder, which loads its libraries.
fn try_provider(provider: OnnxRuntime, runtime: &Runtime) -> std::result::Result<(), String> {
    let builder = Session::builder(&runtime.environment).map_err(|e| e.to_string())?;
    builder.with_execution_providers([provider.provider(Precision::F32, 1)]).map(|_| ()).map_err(|e| e.to_string())
}

/// The version in ONNX Runtime's build information.
fn version(info: &str) -> String {
    info.split(',').find_map(|part| part.trim().strip_prefix("git-branch=")).unwrap_or("ONNX Runtime").to_owned()
}

/// A session for one length.
struct Compiled {
    session: Session,
    shape: Vec<i64>,
    input: String,
    output: String,
    /// Input, output and shape of each state.
    states: Vec<(String, String, Vec<i64>)>,
}

impl Compiled {
    fn new(
        provider: OnnxRuntime,
        runtime: &Runtime,
        graph: &Graph,
        stream: &Stream,
        frames: usize,
        precision: Precision,
        threads: usize,
    ) -> Result<Self> {
        let failed = |e: String| {
            Error::unavailable(format!("{} on {frames} frames: {e}; {}", graph.path.display(), provider.mend()))
        };
        let open = || -> std::result::Result<Session, String> {
            let text = |e: &dyn std::fmt::Display| e.to_string();
            let mut builder = Session::builder(&runtime.environment)
                .map_err(|e| text(&e))?
                .with_log_level(LogLevel::Warning)
                .map_err(|e| text(&e))?
                .with_optimization_level(GraphOptimizationLevel::All)
                .map_err(|e| text(&e))?
                .with_intra_threads(threads)
                .map_err(|e| text(&e))?
                // A daemon must not burn a core between two hops.
                .with_intra_op_spinning(false)
                .map_err(|e| text(&e))?;
            if provider != OnnxRuntime::Cpu {
                builder = builder.with_disable_cpu_fallback().map_err(|e| text(&e))?;
            }
            for (symbol, size) in graph.symbols(stream, frames) {
                builder = builder.with_dimension_override(symbol, size as i64).map_err(|e| text(&e))?;
            }
            builder
                .with_execution_providers([provider.provider(precision, threads)])
                .map_err(|e| text(&e))?
                .commit_from_file(&graph.path)
                .map_err(|e| text(&e))
        };
        let session = open().map_err(failed)?;
        let dims = |shape: &[usize]| shape.iter().map(|&n| n as i64).collect::<Vec<i64>>();
        let states = stream.state.iter().map(|s| (s.input.clone(), s.output.clone(), dims(&s.shape))).collect();
        Ok(Compiled {
            session,
            shape: dims(&stream.shape(frames)),
            input: stream.input.clone(),
            output: stream.output.clone(),
            states,
        })
    }

    fn try_run(&mut self, input: &Tensor, state: &mut [DynValue], logits: &mut Vec<f32>) -> ort::Result<()> {
        let shape = self.shape.as_slice();
        let value: SessionInputValue = match input {
            Tensor::F32(values) => TensorRef::from_array_view((shape, values.as_slice()))?.into(),
            Tensor::U8(values) => TensorRef::from_array_view((shape, values.as_slice()))?.into(),
        };
        let mut inputs: Vec<(Cow<str>, SessionInputValue)> = vec![(self.input.as_str().into(), value)];
        for ((name, ..), value) in self.states.iter().zip(state.iter()) {
            inputs.push((name.as_str().into(), value.view().into()));
        }
        let mut outputs = self.session.run(inputs)?;
        logits.clear();
        logits.extend_from_slice(outputs[self.output.as_str()].try_extract_tensor::<f32>()?.1);
        for ((_, name, _), value) in self.states.iter().zip(state) {
            if let Some(next) = outputs.remove(name) {
                *value = next;
            }
        }
        Ok(())
    }
}

impl Engine for Compiled {
    type State = Vec<DynValue>;

    fn zero(&self) -> Result<Self::State> {
        let zero = |(_, _, shape): &(String, String, Vec<i64>)| {
            let values = vec![0f32; shape.iter().product::<i64>() as usize];
            ort::value::Tensor::from_array((shape.clone(), values)).map(|t| t.into_dyn())
        };
        let zeros: ort::Result<Vec<DynValue>> = self.states.iter().map(zero).collect();
        zeros.map_err(|e| Error::internal(format!("no state: {e}")))
    }

    fn run(&mut self, input: &Tensor, state: &mut Self::State, logits: &mut Vec<f32>) -> Result<()> {
        self.try_run(input, state, logits).map_err(|e| Error::internal(format!("ONNX Runtime failed: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_of_a_folder_is_taken_and_none_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(library_in(folder.path()), None);
        assert_eq!(library_in(Path::new("/nonexistent")), None);
        for name in ["libonnxruntime.so.1.20.0", "libonnxruntime.so.1.24.1", "libonnxruntime_providers_shared.so"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(library_in(folder.path()), Some(folder.path().join("libonnxruntime.so.1.24.1")));
    }

    #[test]
    fn asking_what_there_is_names_every_provider_and_a_mend_for_what_is_missing() {
        let all = availability();
        assert_eq!(all.iter().map(|a| a.name).collect::<Vec<_>>(), ["tensorrt", "cuda", "openvino", "cpu"]);
        assert!(all.iter().all(|a| a.usable != a.mend.is_some()));
    }
}
