use std::path::Path;
use crate::{error::{Error,Result}, frame::Picture};
use super::{Options, Pace, Source};
pub struct Camera;
impl Camera { pub fn open(path: &Path, _options: &Options) -> Result<Self> { Err(Error::unavailable(format!("{} not there", path.display()))) } }
impl Source for Camera { fn next(&mut self) -> Result<Picture<'_>> { Err(Error::end_of_stream()) } fn pace(&self) -> Pace { Pace::Live } }
