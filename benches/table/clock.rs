//! Times that can be compared: several ways in turn, the least of each.

use std::time::Instant;

use tch::Device;
use vision_mamba_ops::device::synchronize;

/// How work is timed.
#[derive(Clone, Copy)]
pub struct Clock {
    pub device: Device,
    /// Seconds for each thing that is timed.
    pub budget: f64,
}

impl Clock {
    /// What `work` takes: of one thread its own time on the processor, which other programs do not lengthen; else the clock's, and a GPU is
    /// waited for.
    pub fn seconds(self, work: &dyn Fn()) -> f64 {
        if self.device == Device::Cpu && tch::get_num_threads() == 1 {
            let start = thread_seconds();
            work();
            return thread_seconds() - start;
        }
        let wait = || synchronize(self.device).expect("a GPU that can be waited for");
        wait();
        let start = Instant::now();
        work();
        wait();
        start.elapsed().as_secs_f64()
    }

    /// The least seconds of each, taken in turn until the budget is spent, but twice at least. The first round only warms up, unless it takes
    /// several times the budget alone.
    pub fn in_turn<const N: usize>(self, works: [&dyn Fn(); N]) -> [f64; N] {
        let budget = self.budget * N as f64;
        let round = || works.map(|work| self.seconds(work));
        let start = Instant::now();
        let cold = round();
        if start.elapsed().as_secs_f64() > 5.0 * budget {
            return cold;
        }
        let mut least = [f64::INFINITY; N];
        let mut rounds = 0;
        while rounds < 2 || start.elapsed().as_secs_f64() < budget {
            for (least, seconds) in least.iter_mut().zip(round()) {
                *least = least.min(seconds);
            }
            rounds += 1;
        }
        least
    }
}

fn thread_seconds() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the function writes the struct it is given, and nothing else.
    #[allow(unsafe_code)]
    unsafe {
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time)
    };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
