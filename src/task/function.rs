//! How a function is named across processes: by the offset of its shim in the main image.

#![allow(unsafe_code)]

use super::codec;
use super::emit::Outflow;
use super::fault::Fault;
use super::shape::Arguments;
use super::yields::StreamArguments;
use crate::sys::image::Image;
use bytes::Bytes;
use std::fmt;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;

/// A task's function as a worker runs it: decode the arguments, call, encode the result.
///
/// One is compiled for each function and argument type that is submitted.
pub(crate) type Shim = fn(&mut Call<'_>) -> Result<(), Fault>;

/// One run of a shim.
#[doc(hidden)]
pub struct Call<'a> {
    /// The encoded arguments.
    pub(crate) input: Bytes,
    /// Where the encoded result goes.
    pub(crate) output: &'a mut Vec<u8>,
    /// How long the result may be.
    pub(crate) limit: u64,
    /// The worker around it.
    pub(crate) host: &'a dyn Host,
}

/// What a shim needs of the worker that runs it.
pub(crate) trait Host {
    /// Runs a future to its end, or until the task is cancelled.
    fn block_on<'a>(&self, future: Pin<Box<dyn Future<Output = ()> + 'a>>);

    /// Runs one item of a chunk; a panic in it becomes a fault.
    fn run_item(&self, item: &mut dyn FnMut() -> Result<(), Fault>) -> Result<(), Fault>;

    /// Sends one item's result ahead of the others.
    fn send_part(&self, part: &[u8]);

    /// Where the items of the stream go that runs, if one does.
    fn outflow(&self) -> Option<Arc<dyn Outflow>> {
        None
    }
}

/// What people see of a task: the name of its function's type and where it was submitted.
#[derive(Clone, Copy)]
pub(crate) struct Label {
    name: fn() -> &'static str,
    location: &'static Location<'static>,
}

impl Label {
    /// The name of the function's type.
    pub(crate) fn function(&self) -> &'static str {
        (self.name)()
    }

    /// Where it was submitted.
    pub(crate) fn location(&self) -> &'static Location<'static> {
        self.location
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` (submitted at {})", self.function(), self.location)
    }
}

/// A function that can be sent to a worker.
#[derive(Clone, Copy)]
pub(crate) struct TaskRef {
    shim: Shim,
    pub(crate) label: Label,
}

impl TaskRef {
    /// The task that calls `F` once.
    #[track_caller]
    pub(crate) fn single<F, A, M>() -> TaskRef
    where
        F: Copy + 'static,
        A: Arguments<F, M>,
    {
        Self::new::<F>(run_single::<F, A, M>)
    }

    /// The task that calls `F` with each of a chunk of items.
    #[track_caller]
    pub(crate) fn chunk<F, A, M>() -> TaskRef
    where
        F: Copy + 'static,
        A: Arguments<F, M>,
    {
        Self::new::<F>(run_chunk::<F, A, M>)
    }

    /// The task that calls `F` once, and sends what that yields.
    #[track_caller]
    pub(crate) fn stream<F, A, M>() -> TaskRef
    where
        F: Copy + 'static,
        A: StreamArguments<F, M>,
    {
        Self::new::<F>(run_stream::<F, A, M>)
    }

    #[track_caller]
    fn new<F: Copy + 'static>(shim: Shim) -> TaskRef {
        const {
            assert!(
                size_of::<F>() == 0,
                "a task's function must not capture anything, nor be a function pointer: only its name \
                 travels to the worker. Pass what it needs as an argument: \
                 `pool.submit(|x, y| .., (x, y))`"
            );
        }
        TaskRef { shim, label: Label { name: std::any::type_name::<F>, location: Location::caller() } }
    }

    /// The task whose shim is at this offset, which must come from [`TaskRef::offset`] in a process of the
    /// same build; `None` if it does not lie in the main image's code.
    #[cfg(feature = "nats")]
    pub(crate) fn at(offset: u64) -> Option<TaskRef> {
        let label = Label { name: || "a task from elsewhere", location: Location::caller() };
        Some(TaskRef { shim: resolve(offset)?, label })
    }

    /// The shim's offset from the main image's load bias; `None` when it lies elsewhere.
    pub(crate) fn offset(&self) -> Option<u64> {
        Image::main().offset_of(self.shim as usize)
    }
}

/// The shim at an offset, if that lies in the main image's code.
///
/// The offset must come from [`TaskRef::offset`] in a process of the same build, which the
/// handshake has made sure of.
pub(crate) fn resolve(offset: u64) -> Option<Shim> {
    let address = Image::main().address_at(offset)?;
    // SAFETY: requests come from the pool alone, over a pipe that nobody else can write to, and
    // both sides have compared their builds. So the offset was computed by `TaskRef::offset` from
    // a `Shim` of this very image, and names the same function here; the check above keeps even a
    // corrupted one within the image's code.
    Some(unsafe { std::mem::transmute::<usize, Shim>(address) })
}

/// Makes the one value of a zero-sized function type.
fn conjure<F: Copy + 'static>() -> F {
    assert!(size_of::<F>() == 0);
    // SAFETY: `F` has no bytes, so a well-aligned dangling pointer is valid to read it from. A
    // value of it was given to `submit`, so the type is inhabited, and it is `Copy`, so making
    // another one breaks no promise of uniqueness.
    unsafe { std::ptr::NonNull::<F>::dangling().read() }
}

fn run_single<F, A, M>(call: &mut Call<'_>) -> Result<(), Fault>
where
    F: Copy + 'static,
    A: Arguments<F, M>,
{
    let arguments = A::from_body(std::mem::take(&mut call.input))?;
    arguments.apply(conjure::<F>(), call)
}

/// Runs `F` once, and sends the items that it yields.
fn run_stream<F, A, M>(call: &mut Call<'_>) -> Result<(), Fault>
where
    F: Copy + 'static,
    A: StreamArguments<F, M>,
{
    let arguments = A::decode_for_stream(std::mem::take(&mut call.input))?;
    arguments.produce(conjure::<F>(), call)
}

/// Runs `F` with each item of a chunk: length (u32, little-endian) and encoding, one after another.
///
/// Each item's result leaves before the next begins: a byte that says whether it is a value (0)
/// or a fault (1), then its encoding. The chunk's own result is how many nanoseconds it took.
fn run_chunk<F, A, M>(call: &mut Call<'_>) -> Result<(), Fault>
where
    F: Copy + 'static,
    A: Arguments<F, M>,
{
    let (mut rest, limit, host) = (std::mem::take(&mut call.input), call.limit, call.host);
    let started = crate::sys::monotonic_now();
    let mut output = Vec::new();
    while let Some(length) = rest.first_chunk::<4>() {
        let end = 4 + u32::from_le_bytes(*length) as usize;
        if end > rest.len() {
            return Err(Fault::malformed_chunk());
        }
        let mut input = rest.split_to(end).split_off(4);
        output.clear();
        output.push(0);
        let done = host.run_item(&mut || {
            run_single::<F, A, M>(&mut Call {
                input: std::mem::take(&mut input),
                output: &mut output,
                limit: limit.saturating_add(1),
                host,
            })
        });
        if let Err(fault) = done {
            output.clear();
            output.push(1);
            codec::encode_result(fault.bounded(), &mut output, u64::MAX)?;
        }
        host.send_part(&output);
    }
    if !rest.is_empty() {
        return Err(Fault::malformed_chunk());
    }
    codec::encode_result(crate::sys::monotonic_now() - started, call.output, u64::MAX)
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::super::error::CodecStage;
    use super::*;

    struct NoHost;
    impl Host for NoHost {
        fn block_on<'a>(&self, _: Pin<Box<dyn Future<Output = ()> + 'a>>) {}
        fn run_item(&self, item: &mut dyn FnMut() -> Result<(), Fault>) -> Result<(), Fault> {
            item()
        }
        fn send_part(&self, _: &[u8]) {}
    }

    fn add(a: u32, b: u32) -> u32 {
        a + b
    }

    fn task_of<F: Copy + 'static, A: Arguments<F, M>, M>(_: F, _: &A) -> TaskRef {
        TaskRef::single::<F, A, M>()
    }

    #[test]
    fn a_function_survives_the_way_through_its_offset() {
        let arguments = (1u32, 2u32);
        let task = task_of(add, &arguments);
        let shim = resolve(task.offset().unwrap()).unwrap();
        let input = codec::to_body(arguments, 10, CodecStage::EncodeArguments).unwrap();
        let mut output = Vec::new();
        let mut call = Call { input, output: &mut output, limit: 10, host: &NoHost };
        shim(&mut call).unwrap();
        assert_eq!(codec::from_body::<u32>(output.into(), CodecStage::DecodeResult).unwrap(), 3);
    }

    #[test]
    fn an_offset_outside_the_code_is_refused() {
        assert!(resolve(u64::MAX).is_none());
        assert!(resolve(0).is_none());
    }
}
