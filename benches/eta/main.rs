//! How accurate the estimates of the time left are, in virtual time, compared with published rules: `cargo bench
//! --bench eta [-- [jobs of each workload] [seed]]`.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the numbers of a benchmark are small"
)]

mod comparison;
mod rules;
mod workloads;

fn main() {
    // Cargo adds `--bench`.
    let mut numbers = std::env::args().filter_map(|argument| argument.parse().ok());
    let (jobs, seed) = (numbers.next().unwrap_or(40), numbers.next().unwrap_or(0));
    println!(
        "Median factor between estimated and true time left / share of the run off by more than 3×"
    );
    let rules = comparison::RULES.map(|rule| format!("{rule:>15}"));
    println!("{:30}{}  range holds the end", "", rules.concat());
    let (mut missed, mut within, mut ranges) = (0, 0.0, 0);
    for workload in workloads::all(jobs, seed) {
        let row = comparison::compare(&workload);
        let cells = row.scores.map(|score| match score {
            Some(score) if score.factor >= 1000.0 => {
                format!("{:>8} /{:>3.0} %", "> 1000", score.off * 100.0)
            }
            Some(score) => format!("{:>8.2} /{:>3.0} %", score.factor, score.off * 100.0),
            None => format!("{:>15}", "–"),
        });
        let mark = if row.reaches_the_goal() { "" } else { "  !" };
        let coverage = row.coverage * 100.0;
        println!("{:30}{}{coverage:>6.0} %{mark}", row.name, cells.concat());
        missed += usize::from(!row.reaches_the_goal());
        within += row.coverage * row.ranges as f64;
        ranges += row.ranges;
    }
    println!(
        "{missed} rows miss the goal; the range holds the end in {:.0} %",
        100.0 * within / ranges as f64
    );
}
