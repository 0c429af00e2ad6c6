//! Checks that no input costs more than its size allows: CPU time and memory are measured for each one.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Counts the allocations of all threads.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn more(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

fn less(bytes: usize) {
    LIVE.fetch_sub(bytes, Ordering::Relaxed);
}

// SAFETY: the system allocator does the work; this only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        less(layout.size());
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        more(size);
        less(layout.size());
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// The limits on what an input may cost.
pub struct Bounds {
    /// Which CPU time counts: that of the thread for a parser, that of the process for a request.
    pub clock: ClockId,
    pub base_time: Duration,
    pub time_per_byte: Duration,
    pub base_bytes: usize,
    pub bytes_per_byte: usize,
}

/// The limits of a parser, in an instrumented build without optimisation.
const PARSER: Bounds = Bounds {
    clock: ClockId::ThreadCPUTime,
    base_time: Duration::from_millis(20),
    time_per_byte: Duration::from_micros(10),
    base_bytes: 64 * 1_024,
    bytes_per_byte: 128,
};

/// The limits of a request, including what runs in the background.
pub const REQUEST: Bounds = Bounds {
    clock: ClockId::ProcessCPUTime,
    base_time: Duration::from_millis(500),
    time_per_byte: Duration::from_micros(50),
    base_bytes: 8 * 1_024 * 1_024,
    bytes_per_byte: 1_024,
};

/// What an input has cost.
struct Cost {
    time: Duration,
    bytes: usize,
}

/// How often a parser may cost too much for the same input. The clock of a virtual machine also counts, at times, what its host takes, and
/// a bounded cache behind the parser grows now and then, by more than one input needs.
const EXCESS_MAX: usize = 2;

/// Runs a parser and checks its cost.
pub fn check_parser<T>(input_bytes: usize, parse: impl Fn() -> T) -> T {
    for _ in 0..EXCESS_MAX {
        let (done, cost) = PARSER.measure(&parse);
        if cost.time <= PARSER.time(input_bytes) && cost.bytes <= PARSER.bytes(input_bytes) {
            return done;
        }
    }
    PARSER.check(input_bytes, parse)
}

impl Bounds {
    /// Runs the work and checks its cost.
    pub fn check<T>(&self, input_bytes: usize, work: impl FnOnce() -> T) -> T {
        let (done, cost) = self.measure(work);
        self.verify(input_bytes, &cost);
        done
    }

    fn measure<T>(&self, work: impl FnOnce() -> T) -> (T, Cost) {
        let live = LIVE.load(Ordering::Relaxed);
        PEAK.store(live, Ordering::Relaxed);
        let began = self.now();
        let done = work();
        let time = self.now().saturating_sub(began);
        let bytes = PEAK.load(Ordering::Relaxed).saturating_sub(live);
        (done, Cost { time, bytes })
    }

    fn time(&self, input_bytes: usize) -> Duration {
        let count = u32::try_from(input_bytes).expect("inputs are small");
        self.base_time + self.time_per_byte * count
    }

    fn bytes(&self, input_bytes: usize) -> usize {
        self.base_bytes + self.bytes_per_byte * input_bytes
    }

    fn verify(&self, input_bytes: usize, cost: &Cost) {
        let (took, allowed) = (cost.time, self.time(input_bytes));
        assert!(
            took <= allowed,
            "{input_bytes} bytes took {took:?} of CPU time, more than {allowed:?}"
        );
        let (bytes, allowed) = (cost.bytes, self.bytes(input_bytes));
        assert!(
            bytes <= allowed,
            "{input_bytes} bytes took {bytes} bytes of memory, more than {allowed}"
        );
    }

    fn now(&self) -> Duration {
        let now = clock_gettime(self.clock);
        Duration::new(
            now.tv_sec.unsigned_abs(),
            u32::try_from(now.tv_nsec).expect("less than a second"),
        )
    }
}
