//! The kinds of tasks, of faults from outside, and of ends, and what may become of a task of each
//! kind by its own doing.

use procession::{ExitCause, TaskError, WorkerExit};

/// An enum with a list of all its variants, so that it can be told which of them never occurred.
macro_rules! listed {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            pub const ALL: [$name; [$($name::$variant),*].len()] = [$($name::$variant),*];
        }
    };
}

listed! {
    /// What a task does.
    Kind {
        Quick, Echo, EchoBeyondArena, Sleep, Spin, Async, Detached, Flood, Reserved, ReserveDropped,
        Map, MapDropped, MapWithCrash, MapItem, MapCrash,
        Panic, Error,
        Abort, ExitZero, ExitThree, Signal, Overflow, CrashWithArguments,
        HangTimeout, AsyncTimeout, StopTimeout,
        HangCancelled, AsyncCancelled, HeedsCancelled, QueuedCancelled, Dropped,
        Retried, RetriedInVain,
        DaughterForked, DaughterSpawned, DaughterThenCrash,
        TruncatedThenAbort, TruncatedThenHang, Oversize, RandomFrame, TruncatedThenReturn,
        ClosesThenHangs, ClosesThenReturns,
        Service, ServiceDropped,
        Reports, ReportsUnwatched, ReportsThenCrash,
        Logs,
        OutOfDescriptors, OutOfMemory,
        Stream, StreamSlow, StreamBulky, StreamBeyondArena, StreamUnits, StreamThreads, StreamWithErrors,
        StreamReports, StreamDropped, StreamEndless, Streams, StreamOfMany,
        StreamPanic, StreamError, StreamAbort, StreamHang, StreamStop, StreamHeld, StreamCancelled,
    }
}

listed! {
    /// What is done to processes from outside.
    Fault {
        KillWorker, TerminateWorker, StopWorker, KillStarting, StopStarting,
        /// A worker in the middle of a stream.
        KillStreaming, StopStreaming,
        KillServer, StopServer, StopServerInStart, StopServerThenKillWorker,
    }
}

listed! {
    /// What not every pool has.
    Setting {
        MaxTasks, MaxRss, MemoryLimit, OpenFilesLimit, BoundedQueue, TimeoutReports, Timeline, Sandbox,
    }
}

listed! {
    /// How a round ends.
    End {
        /// When all is done.
        Shutdown,
        ShutdownNow,
        /// With tasks still being submitted.
        ShutdownInTheMiddle,
        DropPool,
        ShutdownTimeout,
        DropRuntime,
    }
}

listed! {
    /// What a handle gave.
    Outcome {
        Value, WrongValue, Panicked, Failed, Died, TimedOut, Cancelled, QueueFull, ShutDown, Broken,
        Other,
        /// Nobody waited for it.
        Unseen,
    }
}

impl Outcome {
    pub fn of(error: &TaskError) -> Outcome {
        match error {
            TaskError::Panicked(_) => Outcome::Panicked,
            TaskError::Failed(_) => Outcome::Failed,
            TaskError::WorkerDied(_) => Outcome::Died,
            TaskError::TimedOut { .. } => Outcome::TimedOut,
            TaskError::Cancelled => Outcome::Cancelled,
            TaskError::QueueFull { .. } => Outcome::QueueFull,
            TaskError::ShutDown => Outcome::ShutDown,
            TaskError::PoolBroken(_) => Outcome::Broken,
            _ => Outcome::Other,
        }
    }
}

impl Fault {
    pub fn needs_server(self) -> bool {
        use Fault::*;
        matches!(self, KillServer | StopServer | StopServerInStart | StopServerThenKillWorker)
    }

    pub fn is_about_starts(self) -> bool {
        use Fault::*;
        matches!(self, KillStarting | StopStarting | StopServerInStart)
    }
}

impl End {
    /// Whether tasks may be resolved as shut down, from the moment that it begins.
    pub fn sweeps(self) -> bool {
        !matches!(self, End::Shutdown | End::DropPool)
    }

    pub fn is_in_the_middle(self) -> bool {
        self.sweeps()
    }
}

impl Kind {
    /// Whether it does no harm and wants a value.
    pub fn is_innocent(self) -> bool {
        use Kind::*;
        matches!(
            self,
            Quick
                | Echo
                | EchoBeyondArena
                | Sleep
                | Spin
                | Async
                | Detached
                | Flood
                | Reserved
                | ReserveDropped
                | Map
                | MapDropped
                | MapItem
                | Service
                | ServiceDropped
                | Reports
                | ReportsUnwatched
                | Logs
                | OutOfDescriptors
                | Streams
        ) || self.is_innocent_stream()
    }

    fn is_innocent_stream(self) -> bool {
        use Kind::*;
        matches!(
            self,
            Stream
                | StreamSlow
                | StreamBulky
                | StreamBeyondArena
                | StreamUnits
                | StreamThreads
                | StreamWithErrors
                | StreamReports
                | StreamDropped
                | StreamEndless
                | StreamOfMany
        )
    }

    /// Whether it is one stream.
    pub fn is_stream(self) -> bool {
        use Kind::*;
        let is_guilty = matches!(
            self,
            StreamPanic | StreamError | StreamAbort | StreamHang | StreamStop | StreamHeld | StreamCancelled
        );
        is_guilty || self.is_innocent_stream()
    }

    /// Whether this program was built for it.
    pub fn is_possible(self) -> bool {
        cfg!(feature = "tower") || !matches!(self, Kind::Service | Kind::ServiceDropped)
    }

    pub fn is_large(self) -> bool {
        use Kind::*;
        matches!(self, Echo | Flood | Map | MapDropped | Logs | Streams | StreamBulky | StreamUnits)
    }

    /// Not to be dealt like others: too much to have often, or not a task by itself.
    pub fn is_heavy(self) -> bool {
        use Kind::*;
        matches!(self, EchoBeyondArena | MapItem | MapCrash | StreamBeyondArena | StreamOfMany)
    }

    /// Whether it leaves its worker in a state in which later tasks may suffer.
    pub fn poisons(self) -> bool {
        matches!(self, Kind::TruncatedThenReturn | Kind::ClosesThenReturns)
    }

    /// Whether it is tasks of its own making: a map, or many streams.
    pub fn has_items(self) -> bool {
        matches!(self, Kind::Map | Kind::MapDropped | Kind::MapWithCrash | Kind::Streams)
    }

    /// How often it may begin.
    pub fn attempts(self) -> u32 {
        match self {
            Kind::Retried => 4,
            Kind::RetriedInVain => 2,
            _ => 1,
        }
    }

    /// Whether a value, being the right one, is what a task of this kind may have.
    pub fn may_have_value(self) -> bool {
        use Kind::*;
        match self {
            // A random frame may happen to say something.
            DaughterForked | DaughterSpawned | Retried | TruncatedThenReturn | ClosesThenReturns
            | MapWithCrash | RandomFrame | QueuedCancelled | HeedsCancelled => true,
            _ => self.is_innocent(),
        }
    }

    /// What it comes to if it is left alone; nothing where that is a matter of chance.
    pub fn own_end(self) -> Option<Outcome> {
        use Kind::*;
        let end = match self {
            RandomFrame | TruncatedThenReturn | ClosesThenReturns => return None,
            Detached | ReserveDropped | ServiceDropped | Dropped | StreamDropped | StreamEndless => {
                Outcome::Unseen
            }
            Panic | StreamPanic => Outcome::Panicked,
            Error | StreamError => Outcome::Failed,
            _ if self.is_timed() => Outcome::TimedOut,
            _ if self.is_cancelled() => Outcome::Cancelled,
            _ if self.may_have_value() => Outcome::Value,
            _ => Outcome::Died,
        };
        Some(end)
    }

    /// Whether a task of this kind has brought this error upon itself.
    pub fn earns(self, id: u32, error: &TaskError) -> bool {
        match error {
            TaskError::WorkerDied(exit) => self.dies_of(exit),
            TaskError::Panicked(panic) => {
                matches!(self, Kind::Panic | Kind::StreamPanic)
                    && panic.message() == format!("task {id} panics")
            }
            TaskError::Failed(failure) => {
                matches!(self, Kind::Error | Kind::StreamError)
                    && format!("{failure:#}") == format!("task {id} fails: the cause")
            }
            TaskError::TimedOut { .. } => self.is_timed(),
            TaskError::Cancelled => self.is_cancelled(),
            _ => false,
        }
    }

    /// Whether it is submitted with a timeout that may pass.
    fn is_timed(self) -> bool {
        use Kind::*;
        matches!(
            self,
            HangTimeout
                | AsyncTimeout
                | StopTimeout
                | TruncatedThenHang
                | RandomFrame
                | StreamHang
                | StreamStop
                | StreamHeld
        )
    }

    fn is_cancelled(self) -> bool {
        use Kind::*;
        matches!(
            self,
            HangCancelled | AsyncCancelled | HeedsCancelled | QueuedCancelled | Dropped | StreamCancelled
        )
    }

    fn dies_of(self, exit: &WorkerExit) -> bool {
        use Kind::*;
        let end = (exit.cause(), exit.code(), exit.signal());
        match self {
            Abort | CrashWithArguments | RetriedInVain | DaughterThenCrash | TruncatedThenAbort
            | MapCrash | ReportsThenCrash | StreamAbort => {
                end == (ExitCause::Signalled, None, Some(libc::SIGABRT))
            }
            // Where nobody keeps what it says at its end, the cause is not told.
            OutOfMemory => {
                matches!(exit.cause(), ExitCause::OutOfMemory | ExitCause::Signalled)
                    && exit.signal() == Some(libc::SIGABRT)
            }
            Signal => end == (ExitCause::Signalled, None, Some(libc::SIGSEGV)),
            ExitZero => end == (ExitCause::Exited, Some(0), None),
            ExitThree => end == (ExitCause::Exited, Some(3), None),
            Overflow => exit.cause() == ExitCause::StackOverflow,
            Oversize => exit.cause() == ExitCause::ProtocolViolation,
            // Some bytes have no end, and are noticed when it is over.
            RandomFrame => exit.cause() == ExitCause::ProtocolViolation,
            TruncatedThenReturn => exit.cause() == ExitCause::ProtocolViolation,
            // Killed by the pool, or ended by itself, for want of its pipes.
            ClosesThenHangs | ClosesThenReturns => true,
            _ => false,
        }
    }
}
