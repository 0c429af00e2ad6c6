//! Jobs in virtual time: what their workers report, and when they end.

use std::f64::consts::{PI, TAU};

use fastrand::Rng;

/// One job.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// Reports: the time in seconds since the start, and the progress in percent, or `None` for a message only.
    pub(crate) reports: Vec<(f64, Option<f64>)>,
    /// When the job ends.
    pub(crate) end: f64,
    /// Earlier jobs of its type.
    pub(crate) earlier: Vec<Run>,
    /// Seconds of silence before the job is stalled, if there is a watchdog.
    pub(crate) stall_after: Option<f64>,
    /// The time from which estimates are judged. Events that cannot be predicted are not held against them.
    pub(crate) from: f64,
}

/// A kind of workload, and some jobs of it.
pub(crate) struct Workload {
    /// What distinguishes it.
    pub(crate) name: &'static str,
    /// The jobs.
    pub(crate) runs: Vec<Run>,
}

/// Number of earlier jobs that were completed.
const EARLIER: usize = 7;

impl Run {
    /// Reports after each step, from durations in seconds and sizes in any unit.
    fn of_steps(secs: &[f64], sizes: &[f64]) -> Run {
        let total: f64 = sizes.iter().sum();
        let (mut at, mut done) = (0.0, 0.0);
        let mut reports = vec![(0.0, Some(0.0))];
        for (secs, size) in secs.iter().zip(sizes) {
            at += secs;
            done += size;
            reports.push((at, Some(100.0 * done / total)));
        }
        // The last report completes the job.
        reports.pop();
        Run {
            reports,
            end: at,
            earlier: Vec::new(),
            stall_after: None,
            from: 0.0,
        }
    }

    fn of_equal_steps(secs: &[f64]) -> Run {
        Run::of_steps(secs, &vec![1.0; secs.len()])
    }

    /// This many steps. The duration of each depends on its place from 0 to 1, and varies by a lognormal factor.
    fn uneven(rng: &mut Rng, steps: usize, sigma: f64, secs: impl Fn(f64) -> f64) -> Run {
        let place = |step: usize| (step as f64 + 0.5) / steps as f64;
        let all: Vec<f64> = (0..steps)
            .map(|step| secs(place(step)) * lognormal(rng, sigma))
            .collect();
        Run::of_equal_steps(&all)
    }

    /// Adds a message at regular intervals.
    fn with_messages(mut self, every: f64) -> Run {
        let times = (1..).map(|count| f64::from(count) * every);
        let messages = times.take_while(|at| *at < self.end).map(|at| (at, None));
        self.reports.extend(messages);
        self.reports.sort_by(|a, b| a.0.total_cmp(&b.0));
        self
    }

    fn map_progress(mut self, new: impl Fn(f64) -> Option<f64>) -> Run {
        for (_, progress) in &mut self.reports {
            *progress = progress.and_then(&new);
        }
        self
    }

    /// Scales the speed so that the job ends at this time.
    fn scaled_to(mut self, end: f64) -> Run {
        let factor = end / self.end;
        self.end = end;
        for (at, _) in &mut self.reports {
            *at *= factor;
        }
        self
    }

    /// Equal steps, and one that takes 300 s longer, from which on the estimates are judged.
    fn with_stall(rng: &mut Rng, steps: usize, secs: f64) -> Run {
        let place = rng.usize(steps / 5..steps * 4 / 5);
        let mut all = vec![secs; steps];
        all[place] += 300.0;
        let mut run = Run::of_equal_steps(&all);
        run.from = place as f64 * secs;
        run
    }

    /// The worker is killed at some point: nothing is received until the job is given to another worker. The second
    /// attempt is judged.
    fn killed_and_retried(rng: &mut Rng) -> Run {
        // The server counts an attempt from its start, so the first attempt has no effect.
        Run::uneven(rng, 80, 0.2, |_| 1.5)
    }
}

fn normal(rng: &mut Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (TAU * rng.f64()).cos()
}

/// Returns a factor with mean 1.
fn lognormal(rng: &mut Rng, sigma: f64) -> f64 {
    (sigma * normal(rng) - sigma * sigma / 2.0).exp()
}

fn lumps(rng: &mut Rng) -> Run {
    Run::uneven(rng, 20, 1.0, |_| 10.0)
}

/// Twelve bursts of eight quick steps, and quiet times between them in which the value is repeated.
fn bursts(rng: &mut Rng) -> Run {
    let (mut reports, mut at) = (vec![(0.0, Some(0.0))], 0.0);
    for burst in 0..12 {
        for step in 1..=8 {
            at += 0.2 * lognormal(rng, 0.3);
            reports.push((at, Some(f64::from(burst * 8 + step) / 0.96)));
        }
        let (quiet, value) = (10.0 * lognormal(rng, 0.3), f64::from(burst * 8 + 8) / 0.96);
        if burst < 11 {
            reports.extend((1..6).map(|part| (at + quiet * f64::from(part) / 6.0, Some(value))));
            at += quiet;
        }
    }
    reports.pop();
    Run {
        reports,
        end: at,
        ..Run::of_equal_steps(&[1.0])
    }
}

fn wandering(rng: &mut Rng) -> Run {
    let mut log = 0.0;
    let secs: Vec<f64> = (0..200)
        .map(|_| {
            log += 0.15 * normal(rng);
            f64::exp(log)
        })
        .collect();
    Run::of_equal_steps(&secs)
}

/// Sizes of files with a heavy tail; progress counts the files.
fn heavy_tail(rng: &mut Rng) -> Run {
    let secs: Vec<f64> = (0..300)
        .map(|_| 0.5 * (1.0 - rng.f64()).powf(-1.0 / 1.5).min(100.0))
        .collect();
    Run::of_equal_steps(&secs)
}

fn by_size(rng: &mut Rng) -> Run {
    let sizes: Vec<f64> = (0..60).map(|_| lognormal(rng, 1.0)).collect();
    let secs: Vec<f64> = sizes
        .iter()
        .map(|size| size * 2.0 * lognormal(rng, 0.1))
        .collect();
    Run::of_steps(&secs, &sizes)
}

fn cache_hits(rng: &mut Rng) -> Run {
    let secs: Vec<f64> = (0..200)
        .map(|_| match rng.bool() {
            true => 0.01,
            false => lognormal(rng, 0.3),
        })
        .collect();
    Run::of_equal_steps(&secs)
}

fn pauses(rng: &mut Rng) -> Run {
    let secs: Vec<f64> = (0..200)
        .map(|_| {
            let pause = match rng.f64() < 0.04 {
                true => 15.0 * lognormal(rng, 0.5),
                false => 0.0,
            };
            0.5 * lognormal(rng, 0.2) + pause
        })
        .collect();
    Run::of_equal_steps(&secs)
}

/// The value is reported every second, whether it has changed or not.
fn value_every_second(rng: &mut Rng) -> Run {
    let mut run = Run::uneven(rng, 30, 0.4, |_| 5.0);
    let reached = |at: f64| {
        run.reports
            .iter()
            .rfind(|(time, _)| *time <= at)
            .and_then(|report| report.1)
    };
    let seconds = (0..).map(f64::from).take_while(|at| *at < run.end);
    run.reports = seconds.map(|at| (at, reached(at))).collect();
    run
}

fn two_phases(rng: &mut Rng, (first, second): (f64, f64)) -> Run {
    Run::uneven(
        rng,
        100,
        0.1,
        |place| if place < 0.5 { first } else { second },
    )
}

fn from_half(rng: &mut Rng) -> Run {
    Run::uneven(rng, 50, 0.1, |_| 1.0).map_progress(|progress| Some(50.0 + progress / 2.0))
}

fn unknown_total(rng: &mut Rng) -> Run {
    Run::uneven(rng, 50, 0.1, |_| 2.0).map_progress(|_| None)
}

fn slow_end(rng: &mut Rng) -> Run {
    let mut secs = vec![1.0; 100];
    secs[99] = 50.0 * lognormal(rng, 0.2);
    Run::of_equal_steps(&secs)
}

fn slow_start(rng: &mut Rng) -> Run {
    let mut secs: Vec<f64> = (0..100).map(|_| lognormal(rng, 0.1)).collect();
    secs[0] += 20.0;
    Run::of_equal_steps(&secs)
}

/// Returns every workload, with this many jobs of each. Another `seed` creates different jobs of the same kinds.
pub(crate) fn all(jobs: u64, seed: u64) -> Vec<Workload> {
    let mut all = Vec::new();
    let mut add = |name, earlier: usize, make: &dyn Fn(&mut Rng) -> Run| {
        let runs = (0..jobs).map(|job| {
            let mut rng = Rng::with_seed(seed * 1_000_003 + job * 7_919 + 17);
            let earlier = (0..earlier).map(|_| make(&mut rng)).collect();
            Run {
                earlier,
                ..make(&mut rng)
            }
        });
        let runs = runs.collect();
        all.push(Workload { name, runs });
    };
    let quarter = |place: f64| 1.0 - 0.75 * place;

    add("constant", 0, &|_| Run::of_equal_steps(&[1.0; 100]));
    add("constant, messages between", 0, &|_| {
        Run::of_equal_steps(&[30.0; 40]).with_messages(7.0)
    });
    add("uneven steps", 0, &|rng| {
        Run::uneven(rng, 100, 0.5, |_| 1.0)
    });
    add("bursts, values repeated", 0, &bursts);
    add("very uneven steps", 0, &lumps);
    add("very uneven, similar history", EARLIER, &|rng| {
        let end = 200.0 * lognormal(rng, 0.005);
        lumps(rng).scaled_to(end)
    });
    add("very uneven, varied history", EARLIER, &lumps);
    add("stall of 300 s, flagged", 0, &|rng| Run {
        stall_after: Some(60.0),
        ..Run::with_stall(rng, 300, 2.0)
    });
    add("stall of 300 s, job of 400 s", 0, &|rng| Run {
        stall_after: Some(60.0),
        ..Run::with_stall(rng, 100, 1.0)
    });
    add("stall of 300 s, not flagged", 0, &|rng| {
        Run::with_stall(rng, 300, 2.0)
    });
    add("stall of 300 s with messages", 0, &|rng| {
        Run::with_stall(rng, 300, 2.0).with_messages(5.0)
    });
    add("slowing to a quarter", 0, &|rng| {
        Run::uneven(rng, 100, 0.1, |place| 1.0 / quarter(place))
    });
    add("speeding up fourfold", 0, &|rng| {
        Run::uneven(rng, 100, 0.1, |place| 1.0 / quarter(1.0 - place))
    });
    add("slow at both ends", 0, &|rng| {
        Run::uneven(rng, 100, 0.1, |place| 1.0 / (0.15 + (PI * place).sin()))
    });
    add("wandering rate", 0, &wandering);
    add("a report every ten minutes", 0, &|rng| {
        Run::uneven(rng, 60, 0.2, |_| 600.0)
    });
    add("hours, messages between", 0, &|rng| {
        Run::uneven(rng, 100, 0.5, |_| 300.0).with_messages(30.0)
    });
    add("20 reports a second", 0, &|rng| {
        Run::uneven(rng, 200, 0.3, |_| 0.05)
    });
    add("three reports", 0, &|rng| {
        Run::uneven(rng, 3, 0.2, |_| 30.0)
    });
    add("four steps", 0, &|rng| Run::uneven(rng, 4, 0.3, |_| 60.0));
    add("four steps, messages between", 0, &|rng| {
        Run::uneven(rng, 4, 0.3, |_| 60.0).with_messages(5.0)
    });
    add("files with a heavy tail", 0, &heavy_tail);
    add("files by size", 0, &by_size);
    add("1000 steps, whole percents", 0, &|rng| {
        Run::uneven(rng, 1000, 0.3, |_| 0.1).map_progress(|progress| Some(progress.floor()))
    });
    add("value repeated every second", 0, &value_every_second);
    add("pauses now and then", 0, &pauses);
    add("20 s before the first step", 0, &slow_start);
    add("last step takes a third", 0, &slow_end);
    add("restart at 50 %", 0, &from_half);
    add("restart at 50 %, history", EARLIER, &|rng| from_half(rng));
    add("unknown total, history", EARLIER, &unknown_total);
    add("total known at 40 %", 0, &|rng| {
        Run::uneven(rng, 100, 0.2, |_| 1.0)
            .map_progress(|progress| (progress >= 40.0).then_some(progress))
    });
    add("two phases, the second slower", 0, &|rng| {
        two_phases(rng, (1.0, 5.0))
    });
    add("two phases, the second faster", 0, &|rng| {
        two_phases(rng, (5.0, 1.0))
    });
    add("two phases, history", EARLIER, &|rng| {
        two_phases(rng, (1.0, 5.0))
    });
    add("worker killed, second attempt", 0, &Run::killed_and_retried);
    add("bytes, 40 % cached at first", 0, &|rng| {
        Run::uneven(rng, 100, 0.2, |place| if place < 0.4 { 0.02 } else { 1.0 })
    });
    add("bytes, cache hits between", 0, &cache_hits);
    add("constant, varied history", EARLIER, &|rng| {
        let pace = lognormal(rng, 0.5);
        Run::uneven(rng, 100, 0.1, |_| pace)
    });
    add("three times as long as before", EARLIER, &|rng| {
        Run::uneven(rng, 100, 0.1, |_| 1.0)
    });
    for run in all
        .last_mut()
        .into_iter()
        .flat_map(|workload| &mut workload.runs)
    {
        let third = |earlier: Run| {
            let end = earlier.end / 3.0;
            earlier.scaled_to(end)
        };
        run.earlier = run.earlier.drain(..).map(third).collect();
    }
    all
}
