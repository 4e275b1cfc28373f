//! ONNX Runtime and its execution providers, each a backend of its own: TensorRT, CUDA, OpenVINO, CPU.
//!
//! The library is found at run time, so that one build of the daemon runs with a Jetson's ONNX Runtime, with a PC's, and
//! without any. ONNX Runtime falls back to its CPU provider in silence, for a whole graph and for single nodes; here both
//! are errors, and the next backend in the config's list is tried in the open.

use std::{
    env,
    ffi::{CStr, CString, c_char, c_void},
    fs,
    path::{Path, PathBuf},
    ptr,
    sync::{Arc, OnceLock},
};

use ort::{
    AsPointer,
    environment::Environment,
    ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProvider, ExecutionProviderDispatch},
    logging::LogLevel,
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{
        Session,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
    sys::{OrtApiBase, OrtStatusPtr, OrtValue},
    value::{DynTensor, DynValue, PrimitiveTensorElementType, Tensor as Values, TensorElementType},
};

use super::{
    Availability, Backend, LoadOptions, Network, Tensor, file,
    graph::{Element, Graph, StatePort},
    integers,
    streams::{Engine, Prepared, Streams},
};
use crate::{
    error::{Error, Result},
    model::{Dtype, Model, Precision, Stream},
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

/// Whether this CPU adds the products of 8-bit numbers without loss. An x86 CPU without VNNI adds two of them in 16 bits, which
/// saturate; with OpenVINO 2025.4 the shipped model's logits are off by up to 2.6 there, and its events are others.
pub fn adds_bytes_exactly() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::is_x86_feature_detected!("avx512vnni") || std::is_x86_feature_detected!("avxvnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        true
    }
}

impl OnnxRuntime {
    pub fn by_name(name: &str) -> Option<Self> {
        ALL.into_iter().find(|p| p.name() == name)
    }

    /// The precisions that this provider is good at, best first.
    fn preferred(self) -> &'static [Precision] {
        match self {
            OnnxRuntime::OpenVino if !adds_bytes_exactly() => &[Precision::F32, Precision::F16, Precision::Int8],
            OnnxRuntime::TensorRt | OnnxRuntime::OpenVino => &[Precision::Int8, Precision::F16, Precision::F32],
            OnnxRuntime::Cuda => &[Precision::F16, Precision::F32],
            // Its kernels for QDQ convolutions in 3D are slower than those for f32; f16 it casts back and forth.
            OnnxRuntime::Cpu => &[Precision::F32, Precision::Int8, Precision::F16],
        }
    }

    /// Providers that plan and compile for fixed shapes: open dimensions are pinned for them.
    fn wants_fixed_shapes(self) -> bool {
        self != OnnxRuntime::Cpu
    }

    /// Whether activations are to be unsigned where they can be. Where sums of bytes saturate, the CPU provider does better
    /// with floats, which it takes for signed ones.
    fn wants_unsigned(self) -> bool {
        matches!(self, OnnxRuntime::OpenVino | OnnxRuntime::Cpu) && cfg!(target_arch = "x86_64") && adds_bytes_exactly()
    }

    fn is_in_build(self) -> ort::Result<bool> {
        match self {
            OnnxRuntime::TensorRt => ep::TensorRT::is_available(),
            OnnxRuntime::Cuda => ep::CUDA::is_available(),
            OnnxRuntime::OpenVino => ep::OpenVINO::is_available(),
            OnnxRuntime::Cpu => Ok(true),
        }
    }

    /// What to do where this provider is missing.
    fn mend(self) -> &'static str {
        match self {
            OnnxRuntime::TensorRt | OnnxRuntime::Cuda => {
                "on a Jetson, point ORT_DYLIB_PATH at the libonnxruntime.so of an ONNX Runtime built for its JetPack \
                 (onnxruntime-gpu, 1.17 or later, with CUDA and TensorRT); on a PC with an NVIDIA GPU, at that of the \
                 release archive onnxruntime-linux-x64-gpu"
            }
            OnnxRuntime::OpenVino => {
                "run scripts/setup, which puts the libraries of PyPI's onnxruntime-openvino wheel (x86-64) into \
                 runtime/onnxruntime"
            }
            OnnxRuntime::Cpu => {
                "run scripts/setup, which puts ONNX Runtime into runtime/onnxruntime, or point ORT_DYLIB_PATH at a \
                 libonnxruntime.so, 1.17 or later"
            }
        }
    }

    /// This provider's registration for a session; none for the CPU's, which is always there.
    fn registration(self, precision: Precision, threads: usize, key: &str) -> Option<ExecutionProviderDispatch> {
        let provider = match self {
            OnnxRuntime::TensorRt => {
                // Building an engine takes minutes on a board, so it is kept, apart for each file: an engine's name has
                // the GPU and TensorRT's version in it, but not the weights.
                let cache = cache_folder("tensorrt").join(key);
                if let Err(e) = fs::create_dir_all(&cache) {
                    log::warn!("cannot make {}: {e}; TensorRT builds its engines anew at each start", cache.display());
                }
                ep::TensorRT::default()
                    .with_fp16(precision != Precision::F32)
                    .with_int8(precision == Precision::Int8)
                    .with_engine_cache(true)
                    .with_engine_cache_path(cache.display())
                    .with_timing_cache(true)
                    .with_timing_cache_path(cache.display())
                    .build()
            }
            OnnxRuntime::Cuda => {
                let mut cuda = ep::CUDA::default().with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic);
                // TF32 keeps 10 bits of each factor; a file that says f32 means it. Known from 1.18 on.
                if runtime().is_ok_and(|r| r.minor >= 18) {
                    cuda = cuda.with_tf32(false);
                }
                cuda.build()
            }
            OnnxRuntime::OpenVino => {
                // The option `num_of_threads` would also set how many infer requests, each with buffers of its own, are
                // kept; this one goes to OpenVINO itself.
                let config = format!(r#"{{"CPU": {{"INFERENCE_NUM_THREADS": "{threads}"}}}}"#);
                ep::OpenVINO::default()
                    .with_device_type("CPU")
                    .with_num_streams(1)
                    // On a processor with bf16 or f16, OpenVINO would infer in that what is not quantized.
                    .with_precision("FP32")
                    .with_arbitrary_config("load_config", config)
                    .build()
            }
            OnnxRuntime::Cpu => return None,
        };
        Some(provider.error_on_failure())
    }

    /// Session options with this provider, which has then loaded its libraries and found its device. What it keeps on
    /// disk it keeps under `key`.
    fn session_builder(self, precision: Precision, threads: usize, key: &str) -> Result<SessionBuilder> {
        let runtime = runtime().map_err(|e| Error::unavailable(format!("{e}; {}", self.mend())))?;
        let missing = |why: String| {
            Error::unavailable(format!(
                "the {} provider of {} {why}; {}",
                self.name(),
                runtime.path.display(),
                self.mend()
            ))
        };
        match self.is_in_build() {
            Ok(true) => {}
            Ok(false) => return Err(missing("is not built in".into())),
            Err(e) => return Err(missing(format!("cannot be asked for: {e}"))),
        }
        let internal = |e: String| Error::internal(format!("ONNX Runtime refused its options: {e}"));
        let mut builder = session_options(&runtime.environment, threads).map_err(|e| internal(e.to_string()))?;
        if let Some(provider) = self.registration(precision, threads, key) {
            builder = builder
                .with_disable_cpu_fallback()
                .map_err(|e| internal(e.to_string()))?
                .with_execution_providers([provider])
                .map_err(|e| missing(format!("does not start: {}", self.why(runtime, &e.to_string()))))?;
        }
        Ok(builder)
    }

    /// Why a provider does not start: ONNX Runtime does not tell when its library is simply not there.
    fn why(self, runtime: &Runtime, error: &str) -> String {
        let library = format!("libonnxruntime_providers_{}.so", self.name());
        let beside = runtime.path.with_file_name(&library);
        if beside.is_absolute() && !beside.exists() {
            return format!("{} is missing", beside.display());
        }
        error.replace('\n', " ")
    }

    fn availability(self) -> Availability {
        let found = match (runtime(), self.session_builder(Precision::F32, 1, "probe")) {
            (Ok(runtime), Ok(_)) => Ok(format!("ONNX Runtime {} in {}", runtime.version, runtime.path.display())),
            (Ok(_), Err(e)) => Err(e.to_string()),
            (Err(why), _) => Err(why.clone()),
        };
        match found {
            Ok(found) => Availability { name: self.name(), usable: true, found, mend: None },
            Err(why) => {
                // The error ends in the mend; here that has a place of its own.
                let found = why.strip_suffix(self.mend()).unwrap_or(&why).trim_end_matches("; ").to_owned();
                Availability { name: self.name(), usable: false, found, mend: Some(self.mend().to_owned()) }
            }
        }
    }
}

pub(super) fn availability() -> Vec<Availability> {
    ALL.into_iter().map(OnnxRuntime::availability).collect()
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
        let provider = *self;
        let threads = options.threads();
        // The library first: without it there is no use in reading the graphs.
        provider.session_builder(Precision::F32, threads, "probe")?;
        if provider == OnnxRuntime::TensorRt {
            log::info!("TensorRT may build its engines for minutes the first time; they are kept");
        }
        let streams = Streams::new(model, options, |stream| {
            let file = file(stream, provider.preferred(), options)?;
            let precision = file.precision;
            let mut graph = Graph::read(model, stream, file)?;
            if precision == Precision::Int8 && provider.wants_unsigned() {
                graph.bytes = integers::unsigned(&graph.bytes).unwrap_or(graph.bytes);
            }
            let stream = stream.clone();
            // One session serves all lengths where the provider takes open shapes.
            let mut open: Option<(String, Arc<Session>)> = None;
            let build = move |graph: &Graph, frames| {
                let session = match &open {
                    Some((of, session)) if *of == graph.sha256 => session.clone(),
                    _ => Arc::new(session(provider, graph, &stream, frames, precision, threads)?),
                };
                if !provider.wants_fixed_shapes() {
                    open = Some((graph.sha256.clone(), session.clone()));
                }
                Loaded::new(provider, session, graph, &stream, frames)
            };
            Ok(Prepared { precision, graph, build: Box::new(build) })
        })?;
        Ok(Box::new(streams))
    }
}

fn session(
    provider: OnnxRuntime,
    graph: &Graph,
    stream: &Stream,
    frames: usize,
    precision: Precision,
    threads: usize,
) -> Result<Session> {
    let mut builder = provider.session_builder(precision, threads, &graph.sha256)?;
    if provider.wants_fixed_shapes() {
        for (symbol, size) in graph.symbols(stream, frames) {
            builder = builder
                .with_dimension_override(&symbol, size as i64)
                .map_err(|e| Error::internal(format!("cannot pin the dimension {symbol}: {e}")))?;
        }
    }
    builder.commit_from_memory(&graph.bytes).map_err(|e| {
        let why = e.to_string();
        if why.contains("fallback to CPU EP has been explicitly disabled") {
            return Error::unavailable(format!(
                "{}: the {} provider can't run every node of this graph, and the rest would run on the CPU provider",
                graph.path.display(),
                provider.name()
            ));
        }
        Error::model(format!("{}: ONNX Runtime can't run this graph: {why}", graph.path.display()))
    })
}

fn session_options(environment: &Environment, threads: usize) -> ort::Result<SessionBuilder> {
    let builder = Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(threads)?
        .with_inter_threads(1)?
        .with_memory_pattern(true)?
        // Threads that wait for the next hop must not burn the CPU meanwhile.
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?;
    Ok(builder)
}

/// A session with the input buffer for one length.
struct Loaded {
    session: Arc<Session>,
    input: Input,
    /// The session's names, in the order in which values are handed over: the input, then each state; the logits, then
    /// each state.
    input_names: Vec<CString>,
    output_names: Vec<CString>,
    states_in: Vec<StatePort>,
    states_out: Vec<StatePort>,
    /// Where states are kept: on the device that computes them.
    memory: Allocator,
    on_device: bool,
    /// Room for a step's pointers, so that a step allocates nothing.
    room: Room,
}

enum Input {
    F32(Values<f32>),
    U8(Values<u8>),
    I8(Values<i8>),
}

#[derive(Default)]
struct Room {
    input_names: Vec<*const c_char>,
    output_names: Vec<*const c_char>,
    inputs: Vec<*const OrtValue>,
    outputs: Vec<*mut OrtValue>,
}

// SAFETY: the pointers are written and read within one call of `run`, and mean nothing before and after it.
unsafe impl Send for Room {}

/// A value that ONNX Runtime allocated.
pub struct Owned(ptr::NonNull<OrtValue>);

// SAFETY: a tensor value is memory and its shape, bound to no thread; it is used through `&mut` engines only.
unsafe impl Send for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: `self.0` came from ONNX Runtime, which gave it to us to release, once.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

/// A lane's state, twice: what the step before gave, and room for what the next one will give. A step swaps the two, so
/// that states are neither copied nor allocated, and stay on the device that computes them.
#[derive(Default)]
pub struct States {
    now: Vec<DynValue>,
    spare: Vec<DynValue>,
    /// What is in `now` are zeros of ours, in the host's memory.
    zeros: bool,
}

impl Loaded {
    fn new(
        provider: OnnxRuntime,
        session: Arc<Session>,
        graph: &Graph,
        stream: &Stream,
        frames: usize,
    ) -> Result<Self> {
        let shape = graph.input_shape(stream, frames);
        let elements = shape.iter().product();
        let input = match stream.dtype {
            _ if graph.is_packed() => Values::from_array((shape, vec![0i8; elements])).map(Input::I8),
            Dtype::F32 => Values::from_array((shape, vec![0f32; elements])).map(Input::F32),
            Dtype::U8 => Values::from_array((shape, vec![0u8; elements])).map(Input::U8),
        };
        let c_names = |first: &String, rest: Vec<&String>| {
            let all = std::iter::once(first).chain(rest);
            all.map(|name| CString::new(name.as_str())).collect::<Result<Vec<_>, _>>()
        };
        let on_device = matches!(provider, OnnxRuntime::TensorRt | OnnxRuntime::Cuda);
        let memory = match on_device {
            true => MemoryInfo::new(AllocationDevice::CUDA, 0, AllocatorType::Device, MemoryType::Default)
                .and_then(|info| Allocator::new(&session, info)),
            false => Ok(Allocator::default()),
        };
        let bad_name = |_| Error::model(format!("{}: a name with a zero byte", graph.path.display()));
        Ok(Loaded {
            session,
            input: input.map_err(|e| Error::internal(format!("no input buffer: {e}")))?,
            input_names: c_names(&stream.input, graph.states_in.iter().map(|s| &s.name).collect()).map_err(bad_name)?,
            output_names: c_names(&stream.output, graph.states_out.iter().map(|s| &s.name).collect())
                .map_err(bad_name)?,
            states_in: graph.states_in.clone(),
            states_out: graph.states_out.clone(),
            memory: memory.map_err(|e| Error::internal(format!("no memory on the device: {e}")))?,
            on_device,
            room: Room::default(),
        })
    }
}

impl Engine for Loaded {
    type State = States;

    fn zero(&self) -> Result<Self::State> {
        let zero = |s: &StatePort| {
            let (shape, n) = (s.shape.as_slice(), s.shape.iter().product());
            Ok(match s.element {
                Element::F32 => Values::from_array((shape, vec![0f32; n]))?.into_dyn(),
                Element::I8 => Values::from_array((shape, vec![0i8; n]))?.into_dyn(),
                Element::U8 => Values::from_array((shape, vec![0u8; n]))?.into_dyn(),
            })
        };
        let now: ort::Result<_> = self.states_in.iter().map(zero).collect();
        let now = now.map_err(|e| Error::internal(format!("no state: {e}")))?;
        Ok(States { now, spare: Vec::new(), zeros: true })
    }

    fn run(&mut self, input: &Tensor, state: &mut Self::State, logits: &mut Vec<f32>) -> Result<()> {
        let value = match (&mut self.input, input) {
            (Input::F32(buffer), Tensor::F32(values)) => fill(buffer, values)?,
            (Input::U8(buffer), Tensor::U8(values)) => fill(buffer, values)?,
            (Input::I8(buffer), Tensor::I8(values)) => fill(buffer, values)?,
            _ => return Err(Error::internal("an input of another type than the stream's")),
        };
        let room = &mut self.room;
        room.input_names.clear();
        room.input_names.extend(self.input_names.iter().map(|n| n.as_ptr()));
        room.output_names.clear();
        room.output_names.extend(self.output_names.iter().map(|n| n.as_ptr()));
        room.inputs.clear();
        room.inputs.push(value);
        // A graph that only begins a state takes none.
        room.inputs.extend(state.now.iter().take(self.states_in.len()).map(|v| v.ptr()));
        if state.spare.len() != self.states_out.len() {
            let place = |s: &StatePort| {
                let element = match s.element {
                    Element::F32 => TensorElementType::Float32,
                    Element::I8 => TensorElementType::Int8,
                    Element::U8 => TensorElementType::Uint8,
                };
                DynTensor::new(&self.memory, element, s.shape.as_slice()).map(DynTensor::into_dyn)
            };
            let spare: ort::Result<_> = self.states_out.iter().map(place).collect();
            state.spare = spare.map_err(|e| Error::internal(format!("no room for a state: {e}")))?;
        }
        room.outputs.clear();
        room.outputs.push(ptr::null_mut());
        room.outputs.extend(state.spare.iter().map(|v| v.ptr().cast_mut()));

        // SAFETY: names and values are valid through the call, and as many as their counts say. The session is run by
        // one thread at a time: its engines belong to one network, which is stepped through `&mut`. The null output, the
        // logits, asks ONNX Runtime to allocate it; what it writes there is ours to release. The others are tensors of
        // the outputs' own shapes, which are read by nobody else and are no inputs of this call.
        let status = unsafe {
            (ort::api().Run)(
                self.session.ptr().cast_mut(),
                ptr::null(),
                room.input_names.as_ptr(),
                room.inputs.as_ptr(),
                room.inputs.len(),
                room.output_names.as_ptr(),
                room.output_names.len(),
                room.outputs.as_mut_ptr(),
            )
        };
        check(status)?;
        let first = room.outputs.first().and_then(|p| ptr::NonNull::new(*p)).map(Owned);
        let first = first.ok_or_else(|| Error::internal("no output"))?;
        std::mem::swap(&mut state.now, &mut state.spare);
        if std::mem::take(&mut state.zeros) && self.on_device {
            // Those lie in the host's memory; the next step gets room on the device.
            state.spare.clear();
        }
        copy_floats(&first, logits)
    }
}

/// Copies a hop's values into the session's input.
fn fill<T: PrimitiveTensorElementType + std::fmt::Debug + Copy>(
    buffer: &mut Values<T>,
    values: &[T],
) -> Result<*const OrtValue> {
    let (_, room) = buffer.extract_tensor_mut();
    if room.len() != values.len() {
        return Err(Error::internal("an input of another size than the session's"));
    }
    room.copy_from_slice(values);
    Ok(buffer.ptr())
}

/// Puts a float tensor's elements in place of what `out` held.
fn copy_floats(value: &Owned, out: &mut Vec<f32>) -> Result<()> {
    let api = ort::api();
    let mut info = ptr::null_mut();
    let mut count = 0;
    let mut dtype = TensorElementType::Undefined.into();
    // SAFETY: `value` is a live tensor; `info` is released right after it was read.
    unsafe {
        check((api.GetTensorTypeAndShape)(value.0.as_ptr(), &mut info))?;
        let read = check((api.GetTensorShapeElementCount)(info, &mut count))
            .and_then(|()| check((api.GetTensorElementType)(info, &mut dtype)));
        (api.ReleaseTensorTypeAndShapeInfo)(info);
        read?;
    }
    if TensorElementType::from(dtype) != TensorElementType::Float32 {
        return Err(Error::internal("the logits are not f32"));
    }
    let mut data: *mut c_void = ptr::null_mut();
    out.clear();
    // SAFETY: the tensor holds `count` floats, on the CPU: without a binding, ONNX Runtime copies outputs there.
    unsafe {
        check((api.GetTensorMutableData)(value.0.as_ptr(), &mut data))?;
        if count > 0 {
            out.extend_from_slice(std::slice::from_raw_parts(data.cast::<f32>(), count));
        }
    }
    Ok(())
}

fn check(status: OrtStatusPtr) -> Result<()> {
    // SAFETY: the status comes straight from a call of ONNX Runtime's and is released here.
    unsafe { ort::Error::result_from_status(status) }.map_err(|e| Error::internal(format!("ONNX Runtime failed: {e}")))
}

/// The library, loaded once for the process.
struct Runtime {
    environment: Environment,
    path: PathBuf,
    version: String,
    minor: u32,
}

fn runtime() -> Result<&'static Runtime, &'static String> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    RUNTIME.get_or_init(open_runtime).as_ref()
}

/// Finds the library and starts its environment. `ort` panics where the library is missing or too old, so that is found
/// out first.
fn open_runtime() -> Result<Runtime, String> {
    let mut reasons = Vec::new();
    for path in candidates() {
        match probe(&path) {
            Ok((version, minor)) => {
                let environment = ort::init_from(&path)
                    .map_err(|e| e.to_string())
                    .and_then(|init| {
                        let init = init.with_name("actiond").with_telemetry(false).with_logger(Arc::new(log_line));
                        init.build().map_err(|e| e.to_string())
                    })
                    .map_err(|e| format!("{} does not start: {e}", path.display()))?;
                environment.set_log_level(log_level());
                log::debug!("ONNX Runtime {version} from {}", path.display());
                return Ok(Runtime { environment, path, version, minor });
            }
            Err(why) => reasons.push(why),
        }
    }
    Err(format!("no ONNX Runtime was found ({})", reasons.join("; ")))
}

/// Where the library may be, in the order in which it is looked for.
fn candidates() -> Vec<PathBuf> {
    if let Some(given) = env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        // Who names a library means that one and no other.
        let given = PathBuf::from(given);
        return if given.is_dir() { vec![in_folder(&given).unwrap_or(given)] } else { vec![given] };
    }
    let mut folders: Vec<PathBuf> = Vec::new();
    if let Ok(exe) = env::current_exe() {
        // bin/actiond beside lib/, and target/release/actiond (or deps/test) in the source tree.
        for folder in exe.ancestors().skip(1).take(4) {
            folders.extend([folder.join("lib"), folder.join("runtime/onnxruntime")]);
        }
    }
    folders.push("runtime/onnxruntime".into());
    let mut found: Vec<PathBuf> = folders.iter().filter_map(|folder| in_folder(folder)).collect();
    // The system's loader looks these up.
    found.extend(["libonnxruntime.so".into(), "libonnxruntime.so.1".into()]);
    found
}

/// The library in a folder, whose name may end in its version; not its providers'.
fn in_folder(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.filter_map(|e| e.ok());
    let name = entries
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| name == "libonnxruntime.so" || name.starts_with("libonnxruntime.so."))
        .max_by_key(|name| name.split('.').filter_map(|part| part.parse::<u32>().ok()).collect::<Vec<_>>())?;
    folder.join(name).canonicalize().ok()
}

/// The version of a library, if it is an ONNX Runtime that has the API which is needed.
fn probe(path: &Path) -> Result<(String, u32), String> {
    // SAFETY: loading runs the library's constructors; it is the library that the user or the setup put there, and it is
    // what `ort` loads next. The symbol has this signature in every release of ONNX Runtime, and the base it returns is
    // a static.
    let (version, has_api) = unsafe {
        let library = libloading::Library::new(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let version = (|| {
            let base: libloading::Symbol<unsafe extern "C" fn() -> *const OrtApiBase> =
                library.get(b"OrtGetApiBase").map_err(|_| "is not an ONNX Runtime".to_owned())?;
            let base = base().as_ref().ok_or("has no API")?;
            let version = CStr::from_ptr((base.GetVersionString)()).to_string_lossy().into_owned();
            Ok((version, !(base.GetApi)(ort::MINOR_VERSION).is_null()))
        })();
        // Never unloaded: its threads and statics may outlive any handle.
        std::mem::forget(library);
        version.map_err(|e: String| format!("{} {e}", path.display()))?
    };
    let minor = version.split('.').nth(1).and_then(|m| m.parse().ok()).unwrap_or(0);
    if !has_api || minor < ort::MINOR_VERSION {
        return Err(format!("{} is version {version}; 1.{} or later is needed", path.display(), ort::MINOR_VERSION));
    }
    Ok((version, minor))
}

/// Asks for no more lines than are printed: every line is formatted on ONNX Runtime's side of the hop.
fn log_level() -> LogLevel {
    match log::max_level() {
        log::LevelFilter::Trace => LogLevel::Verbose,
        log::LevelFilter::Debug => LogLevel::Warning,
        _ => LogLevel::Error,
    }
}

/// What ONNX Runtime calls an error is ours to judge: a failed call returns it as well.
fn log_line(level: LogLevel, category: &str, _id: &str, _place: &str, message: &str) {
    let level = match level {
        LogLevel::Verbose | LogLevel::Info => log::Level::Trace,
        LogLevel::Warning => log::Level::Debug,
        LogLevel::Error | LogLevel::Fatal => log::Level::Debug,
    };
    log::log!(target: "onnxruntime", level, "{category}: {message}");
}

/// A folder for what a provider computes once and keeps; systemd's and the desktop's conventions, in that order.
fn cache_folder(name: &str) -> PathBuf {
    let under = |variable: &str| env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = under("CACHE_DIRECTORY")
        .or_else(|| under("XDG_CACHE_HOME").map(|p| p.join("actiond")))
        .or_else(|| under("HOME").map(|p| p.join(".cache/actiond")))
        .unwrap_or_else(|| env::temp_dir().join("actiond"));
    base.join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_of_a_folder_is_taken_and_none_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(in_folder(folder.path()), None);
        assert_eq!(in_folder(Path::new("/nonexistent")), None);
        for name in ["libonnxruntime.so.1.9.0", "libonnxruntime.so.1.24.1", "libonnxruntime_providers_shared.so"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let folder = folder.path().canonicalize().unwrap();
        assert_eq!(in_folder(&folder), Some(folder.join("libonnxruntime.so.1.24.1")));
    }

    #[test]
    fn what_is_no_onnx_runtime_is_told_and_not_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("libonnxruntime.so");
        fs::write(&text, "not a library").unwrap();
        assert!(probe(&text).unwrap_err().contains("libonnxruntime.so"));
        assert!(probe(Path::new("libc.so.6")).unwrap_err().ends_with("is not an ONNX Runtime"));
        assert!(probe(Path::new("/nonexistent.so")).is_err());
    }

    #[test]
    fn asking_what_there_is_names_every_provider_and_a_mend_for_what_is_missing() {
        let all = availability();
        assert_eq!(all.iter().map(|a| a.name).collect::<Vec<_>>(), ["tensorrt", "cuda", "openvino", "cpu"]);
        assert!(all.iter().all(|a| a.usable != a.mend.is_some()));
    }
}
