//! Pure Rust inference: no library to find, the same numbers on every machine. It takes the f32 files: tract runs a
//! QDQ graph in f32 around its integers, one thread, three times slower than the f32 graph itself.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tract_onnx::prelude::{
    Datum, InferenceModelExt, IntoTValue, RunOptions, TValue, TVec, Tensor as Values, TypedSimpleState,
    multithread::Executor, tract_data::TractResult, tvec,
};

use tract_onnx::{tract_core::internal::DatumTypeExt, tract_hir::infer::Factoid};

use super::{
    Availability, Backend, LoadOptions, Network, Tensor, file,
    graph::{Element, Graph, StatePort},
    streams::{Engine, Prepared, Streams},
};
use crate::{
    error::{Error, Result},
    model::{Model, Precision, Stream},
};

/// The backend that is always there.
pub struct Tract;

impl Backend for Tract {
    fn name(&self) -> &'static str {
        "tract"
    }

    fn load(&self, model: &Model, options: &LoadOptions) -> Result<Box<dyn Network>> {
        let threads = options.threads();
        let executor = if threads > 1 { Executor::multithread(threads) } else { Executor::SingleThread };
        let streams = Streams::new(model, options, |stream| {
            let file = file(stream, &[Precision::F32, Precision::Int8], options)?;
            let precision = file.precision;
            if precision == Precision::Int8 {
                log::warn!("stream `{}` comes in int8 only, which tract runs slower than f32", stream.name);
            }
            let graph = Graph::read(model, stream, file)?;
            let (stream, executor) = (stream.clone(), executor.clone());
            let build = move |graph: &Graph, frames| Compiled::new(graph, &stream, frames, &executor);
            Ok(Prepared { precision, graph, build: Box::new(build) })
        })?;
        Ok(Box::new(streams))
    }
}

pub(super) fn availability() -> Availability {
    Availability { name: "tract", usable: true, found: "built in, pure Rust".into(), mend: None }
}

/// A graph optimised for one length.
struct Compiled {
    state: TypedSimpleState,
    shape: Vec<usize>,
    /// Where the picture and each state go in, and where the logits and each state come out.
    input: usize,
    logits: usize,
    state_inputs: Vec<usize>,
    state_outputs: Vec<usize>,
    states: Vec<StatePort>,
}

impl Compiled {
    fn new(graph: &Graph, stream: &Stream, frames: usize, executor: &Executor) -> Result<Self> {
        let cannot = |why: String| {
            Error::model(format!("{}: tract can't run this graph on {frames} frames: {why}", graph.path.display()))
        };
        let shapes = graph.input_shapes(stream, frames);
        // tract asserts on some graphs that make no sense.
        let state = catch_unwind(AssertUnwindSafe(|| compile(graph, &shapes, executor)))
            .map_err(|panic| cannot(panic_text(&panic)))?
            .map_err(|e| cannot(format!("{e:#}")))?;
        Ok(Compiled {
            state,
            shape: graph.input_shape(stream, frames),
            input: graph.input_index(&stream.input)?,
            logits: graph.output_index(&stream.output)?,
            state_inputs: graph.states_in.iter().map(|s| graph.input_index(&s.name)).collect::<Result<_>>()?,
            state_outputs: graph.states_out.iter().map(|s| graph.output_index(&s.name)).collect::<Result<_>>()?,
            states: graph.states_in.clone(),
        })
    }

    fn try_run(&mut self, input: &Tensor, state: &mut Vec<TValue>, logits: &mut Vec<f32>) -> TractResult<()> {
        let values = match input {
            Tensor::F32(values) => Values::from_shape(&self.shape, values)?,
            Tensor::U8(values) => Values::from_shape(&self.shape, values)?,
            Tensor::I8(values) => Values::from_shape(&self.shape, values)?,
        };
        let mut inputs: TVec<TValue> = tvec![values.into_tvalue(); 1 + self.state_inputs.len()];
        inputs.swap(0, self.input);
        for (value, &at) in state.drain(..).zip(&self.state_inputs) {
            inputs[at] = value;
        }
        let outputs = self.state.run(inputs)?;
        logits.clear();
        logits.extend_from_slice(outputs[self.logits].try_as_plain_ram()?.as_slice::<f32>()?);
        state.clear();
        state.extend(self.state_outputs.iter().map(|&at| outputs[at].clone()));
        Ok(())
    }
}

fn compile(graph: &Graph, shapes: &[Vec<usize>], executor: &Executor) -> TractResult<TypedSimpleState> {
    // Shapes of outputs and of inner values are written for the symbolic length; the inputs say it all.
    let onnx = tract_onnx::onnx().with_ignore_output_shapes(true).with_ignore_value_info(true);
    let mut model = onnx.parse(&graph.proto()?, None)?.model;
    for (i, shape) in shapes.iter().enumerate() {
        let dtype = model.input_fact(i)?.datum_type.concretize().unwrap_or(f32::datum_type());
        model.set_input_fact(i, dtype.fact(shape).into())?;
    }
    let options = RunOptions { executor: Some(executor.clone()), ..RunOptions::default() };
    model.into_optimized()?.into_runnable_with_options(&options)?.spawn()
}

impl Engine for Compiled {
    type State = Vec<TValue>;

    fn zero(&self) -> Result<Self::State> {
        let zero = |s: &StatePort| match s.element {
            Element::F32 => Values::zero::<f32>(&s.shape),
            Element::I8 => Values::zero::<i8>(&s.shape),
            Element::U8 => Values::zero::<u8>(&s.shape),
        };
        let zeros: TractResult<Vec<TValue>> =
            self.states.iter().map(|s| zero(s).map(IntoTValue::into_tvalue)).collect();
        zeros.map_err(|e| Error::internal(format!("no state: {e:#}")))
    }

    fn run(&mut self, input: &Tensor, state: &mut Self::State, logits: &mut Vec<f32>) -> Result<()> {
        catch_unwind(AssertUnwindSafe(|| self.try_run(input, state, logits)))
            .map_err(|panic| Error::internal(format!("tract failed: {}", panic_text(&panic))))?
            .map_err(|e| Error::internal(format!("tract failed: {e:#}")))
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic").to_owned()
}
