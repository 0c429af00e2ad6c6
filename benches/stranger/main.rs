//! What an unauthenticated client can cost: the CPU time and memory that one request without a valid token takes on the
//! real server, for each route, each form of input and each size. `cargo bench --bench stranger`; Linux only. `--
//! /events /monitor` selects only routes that contain these texts.
//!
//! The CPU time is the kernel's figure for the process (`utime` and `stime`), over many requests. The memory is the
//! peak during one request (`VmHWM`, which is reset before it). Costs that grow faster than their input are marked.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the numbers of a benchmark are small"
)]

mod input;
mod keys;
#[path = "../process.rs"]
#[allow(dead_code, reason = "the benchmark `load` uses more of it")]
mod process;
mod server;

use std::collections::BTreeMap;

use self::input::{ROUTES, SHAPES, SIZES, Shape};
use self::server::{Cost, Server};

/// Growth beyond this multiple of the input's growth is reported.
const SUPERLINEAR: f64 = 2.0;
/// Costs below these are noise.
const CPU_FLOOR_MICROS: f64 = 500.0;
const MEMORY_FLOOR_KIB: u64 = 1_024;

/// The costs of a form of input on a route, by size.
type Costs = Vec<(usize, Cost)>;

fn main() {
    if !cfg!(target_os = "linux") {
        println!("the costs are read from /proc, which exists only on Linux");
        return;
    }
    // Cargo adds `--bench`.
    let parts: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let is_asked =
        |route: &str| parts.is_empty() || parts.iter().any(|part| route.contains(&**part));
    let server = Server::start(None);
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
    print_tables(&all);
    let marked = print_growth(&all);
    println!("\n{marked} grow faster than their input.");
    keys::print();
}

/// Prints the most expensive input of each size for each route, and then the most expensive route for each form of
/// input.
fn print_tables(all: &BTreeMap<&str, Vec<(&str, Costs)>>) {
    print_head("route");
    for route in ROUTES {
        let costs = all
            .values()
            .flatten()
            .filter(|(measured, _)| measured == route);
        print_dearest(route, costs.map(|(_, costs)| costs).collect());
    }
    println!();
    print_head("input");
    for Shape { name, .. } in SHAPES {
        let costs = all.get(name).into_iter().flatten();
        print_dearest(name, costs.map(|(_, costs)| costs).collect());
    }
}

fn print_head(first: &str) {
    let sizes = SIZES.map(|size| format!("{} KB", size / 1_000));
    println!("| {first} | {} | answered with |", sizes.join(" | "));
    println!("| --- |{} --- |", " --- |".repeat(SIZES.len()));
}

/// Prints a line with the most expensive of these costs for each size, unless there are none.
fn print_dearest(what: &str, all: Vec<&Costs>) {
    if all.is_empty() {
        return;
    }
    let cells = (0..SIZES.len()).map(|at| {
        let cpu = all.iter().map(|costs| costs[at].1.cpu_micros);
        let memory = all.iter().map(|costs| costs[at].1.memory_kib);
        let cpu = cpu.fold(0.0, f64::max);
        format!("{cpu:.0} µs, {} KiB", memory.max().unwrap_or(0))
    });
    let cells: Vec<String> = cells.collect();
    let statuses = all.iter().flat_map(|costs| costs.iter());
    let mut statuses: Vec<&str> = statuses.map(|(_, cost)| &*cost.status).collect();
    statuses.sort_unstable();
    statuses.dedup();
    println!(
        "| {what} | {} | {} |",
        cells.join(" | "),
        statuses.join(", ")
    );
}

/// Prints what grows faster than its input.
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
