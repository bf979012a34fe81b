//! Metrics of the process, as every client library of Prometheus has them.

use super::page::Page;

/// Writes what the kernel knows of this process; nothing where it cannot be read.
#[cfg(target_os = "linux")]
pub(super) fn write(page: &mut Page<'_>) {
    // What fails is left out: a scrape must not fail for it.
    let _ = read(page);
}

#[cfg(not(target_os = "linux"))]
pub(super) fn write(_page: &mut Page<'_>) {}

#[cfg(target_os = "linux")]
#[allow(clippy::cast_precision_loss, reason = "a metric is a float")]
fn read(page: &mut Page<'_>) -> procfs::ProcResult<()> {
    use procfs::process::{LimitValue, Process};
    use procfs::{CurrentSI as _, WithCurrentSystemInfo as _};

    use super::scraped as list;

    let process = Process::myself()?;
    let stat = process.stat()?;
    let limits = process.limits()?;
    let limit = |value: LimitValue| match value {
        LimitValue::Value(value) => value as f64,
        // As the Go client library shows "unlimited".
        LimitValue::Unlimited => u64::MAX as f64,
    };
    let ticks = procfs::ticks_per_second() as f64;
    let boot = procfs::KernelStats::current()?.btime as f64;
    let mut set = |family: &super::Family, value: f64| {
        if let Some(mut lines) = page.family(family) {
            lines.add(&[], value);
        }
    };
    set(&list::PROCESS_CPU, (stat.utime + stat.stime) as f64 / ticks);
    set(&list::PROCESS_OPEN_FDS, process.fd_count()? as f64);
    set(&list::PROCESS_MAX_FDS, limit(limits.max_open_files.soft_limit));
    set(&list::PROCESS_VIRTUAL_MEMORY, stat.vsize as f64);
    set(&list::PROCESS_VIRTUAL_MEMORY_MAX, limit(limits.max_address_space.soft_limit));
    set(&list::PROCESS_RESIDENT_MEMORY, stat.rss_bytes().get() as f64);
    set(&list::PROCESS_START, boot + stat.starttime as f64 / ticks);
    let devices = process.dev_status()?;
    let sum =
        |of: fn(&procfs::net::DeviceStatus) -> u64| devices.values().map(of).sum::<u64>() as f64;
    set(&list::PROCESS_NETWORK_RECEIVE, sum(|d| d.recv_bytes));
    set(&list::PROCESS_NETWORK_TRANSMIT, sum(|d| d.sent_bytes));
    Ok(())
}
