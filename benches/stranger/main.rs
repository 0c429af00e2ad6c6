//! What a stranger can cost: the processor time and the memory that one request without a valid token takes of the real
//! server, for each route, each form of input and each size. `cargo bench --bench stranger`; Linux only. `-- /events /monitor` asks
//! only routes with these parts.
//!
//! Processor time is what the kernel counts for the process (`utime` and `stime`), over many requests. Memory is the peak
//! of one request (`VmHWM`, which is reset before it). What grows faster than its input is marked.

mod input;
mod server;

use std::collections::BTreeMap;

use self::input::{ROUTES, SHAPES, SIZES, Shape};
use self::server::{Cost, Server};

/// Growth beyond this multiple of the input's own is told.
const SUPERLINEAR: f64 = 2.0;
/// Costs below these are noise.
const CPU_FLOOR_MICROS: f64 = 500.0;
const MEMORY_FLOOR_KIB: u64 = 1_024;

/// The costs of a form of input on a route, by size.
type Costs = Vec<(usize, Cost)>;

fn main() {
    if !cfg!(target_os = "linux") {
        println!("the costs are read from /proc, which is there on Linux only");
        return;
    }
    // Cargo adds `--bench`.
    let parts: Vec<String> = std::env::args()
        .skip(1)
        .filter(|own| !own.starts_with('-'))
        .collect();
    let is_asked =
        |route: &str| parts.is_empty() || parts.iter().any(|part| route.contains(&**part));
    let mut server = Server::start();
    let mut all: BTreeMap<&str, Vec<(&str, Costs)>> = BTreeMap::new();
    for shape in SHAPES {
        for route in ROUTES
            .iter()
            .filter(|route| shape.fits(route) && is_asked(route))
        {
            let costs = SIZES.iter().map(|size| {
                let request = shape.request(route, *size);
                (request.len(), server.cost(&request))
            });
            let costs = costs.collect();
            all.entry(shape.name).or_default().push((route, costs));
        }
    }
    print_table(&all);
    let marked = print_growth(&all);
    println!("\n{marked} grow faster than their input.");
}

/// The dearest route of each form and size.
fn print_table(all: &BTreeMap<&str, Vec<(&str, Costs)>>) {
    let sizes = SIZES.map(|size| format!("{} KB", size / 1_000));
    println!("| input | {} | answered with |", sizes.join(" | "));
    println!("| --- |{} --- |", " --- |".repeat(SIZES.len()));
    for Shape { name, .. } in SHAPES {
        let Some(routes) = all.get(name) else {
            continue;
        };
        let cells: Vec<String> = (0..SIZES.len())
            .map(|at| {
                let cpu = routes.iter().map(|(_, costs)| costs[at].1.cpu_micros);
                let memory = routes.iter().map(|(_, costs)| costs[at].1.memory_kib);
                let cpu = cpu.fold(0.0, f64::max);
                format!("{cpu:.0} µs, {} KiB", memory.max().unwrap_or(0))
            })
            .collect();
        let mut statuses: Vec<String> = routes
            .iter()
            .map(|(_, costs)| costs[SIZES.len() - 1].1.status.clone())
            .collect();
        statuses.sort_unstable();
        statuses.dedup();
        println!(
            "| {name} | {} | {} |",
            cells.join(" | "),
            statuses.join(", ")
        );
    }
}

/// Names what grows faster than its input.
fn print_growth(all: &BTreeMap<&str, Vec<(&str, Costs)>>) -> usize {
    let mut marked = 0;
    for (shape, routes) in all {
        for (route, costs) in routes {
            for pair in costs.windows(2) {
                let [(less, before), (more, after)] = pair else {
                    continue;
                };
                let input = *more as f64 / *less as f64;
                let cpu = after.cpu_micros / before.cpu_micros.max(CPU_FLOOR_MICROS);
                let floor = before.memory_kib.max(MEMORY_FLOOR_KIB);
                let memory = after.memory_kib as f64 / floor as f64;
                if cpu.max(memory) > input * SUPERLINEAR {
                    marked += 1;
                    println!(
                        "SUPERLINEAR: {shape} on {route}: input ×{input:.1}, CPU ×{cpu:.1}, memory ×{memory:.1}"
                    );
                }
            }
        }
    }
    marked
}
