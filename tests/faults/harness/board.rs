//! A page of counters that a round and all its workers share: how often each task began and came
//! to its end, and where. It is a file, so that it outlives every process that writes to it.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// In the environment of every process of a round: the path of its board. It also tells these
/// processes from all others.
pub const PLACE: &str = "PROCESSION_FAULTS_BOARD";

/// The most tasks, items of maps included, that a round may have.
pub const TASKS: usize = 1 << 14;

/// What is noted of one task.
#[repr(C)]
pub struct Line {
    began: AtomicU32,
    ended: AtomicU32,
    /// The process that was the last to begin it, and that one's parent.
    pid: AtomicU32,
    parent: AtomicU32,
}

impl Line {
    pub fn began(&self) -> u32 {
        self.began.load(SeqCst)
    }

    /// How often it returned or unwound.
    pub fn ended(&self) -> u32 {
        self.ended.load(SeqCst)
    }

    pub fn pid(&self) -> u32 {
        self.pid.load(SeqCst)
    }

    pub fn parent(&self) -> u32 {
        self.parent.load(SeqCst)
    }
}

pub struct Board(NonNull<Line>);

// SAFETY: it leads to atomics only, which any thread may use, and stays mapped until it is dropped.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

const SIZE: usize = TASKS * size_of::<Line>();

impl Board {
    pub fn create(path: &Path) -> Board {
        let file = File::create_new(path).unwrap();
        file.set_len(SIZE as u64).unwrap();
        drop(file);
        Board::open(path)
    }

    fn open(path: &Path) -> Board {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of a file that has this size, at a place of the kernel's choice.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), SIZE, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(start, libc::MAP_FAILED, "mapping the board");
        Board(NonNull::new(start.cast()).unwrap())
    }

    pub fn line(&self, task: u32) -> &Line {
        assert!((task as usize) < TASKS);
        // SAFETY: within the mapping, which lives as long as `self`; any bytes are valid atomics,
        // and page alignment is more than a line needs.
        unsafe { self.0.add(task as usize).as_ref() }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that was made when `self` was, and nobody else has it.
        unsafe { libc::munmap(self.0.as_ptr().cast(), SIZE) };
    }
}

/// In a task: notes that it has begun and, when the result is dropped, that it has ended.
pub fn begin(task: u32) -> Turn {
    let line = own_board().line(task);
    line.pid.store(std::process::id(), SeqCst);
    line.parent.store(std::os::unix::process::parent_id(), SeqCst);
    line.began.fetch_add(1, SeqCst);
    Turn(task)
}

fn own_board() -> &'static Board {
    static OWN: OnceLock<Board> = OnceLock::new();
    OWN.get_or_init(|| Board::open(Path::new(&std::env::var_os(PLACE).expect("a process of a round"))))
}

/// A task that has begun.
pub struct Turn(u32);

impl Drop for Turn {
    fn drop(&mut self) {
        own_board().line(self.0).ended.fetch_add(1, SeqCst);
    }
}
