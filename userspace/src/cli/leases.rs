//! `causeway leases`.

use std::{
    io::{self, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use causeway::{
    go_json::rfc3339,
    ipam::store,
    leases::{self, Standing},
    root::Root,
};
use serde::Serialize;

use super::{
    Failure,
    output::{self, Report, duration},
};

#[derive(Serialize)]
pub(crate) struct Leases {
    leases: Vec<Lease>,
    pools: Vec<Pool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Lease {
    address: String,
    state: &'static str,
    container: String,
    interface: String,
    network: String,
    pod: String,
    host_interface: Option<String>,
    /// RFC 3339; null where it is not known.
    since: Option<String>,
    #[serde(skip)]
    seconds: Option<u32>,
}

#[derive(Serialize)]
struct Pool {
    subnet: String,
    interface: String,
    total: usize,
    used: usize,
}

/// What the state files say, or only those of pods that are gone.
pub(crate) fn gather(root: &Root, only_orphans: bool) -> Result<Leases, Failure> {
    let mut found = leases::audit(root)?;
    found.retain(|lease| !only_orphans || lease.standing == Standing::Orphaned);
    let space = store::snapshot(root).map_err(leases::LeasesError::from)?;
    let pool = |subnet: &String| {
        let usage = space.usage(subnet, 0, 0);
        let interface = space.pools.get(subnet).map(|pool| pool.if_name.clone());
        Pool {
            subnet: subnet.clone(),
            interface: interface.unwrap_or_default(),
            total: usage.total,
            used: usage.used,
        }
    };
    Ok(Leases {
        leases: found.into_iter().map(row).collect(),
        pools: space.pools.keys().map(pool).collect(),
    })
}

fn row(lease: leases::Lease) -> Lease {
    let since = (lease.held.since != 0).then(|| UNIX_EPOCH + Duration::from_millis(lease.held.since));
    let age = since.map(|since| SystemTime::now().duration_since(since).unwrap_or_default());
    Lease {
        address: lease.held.address.to_string(),
        state: match lease.standing {
            Standing::Held => "held",
            Standing::Orphaned => "orphaned",
            Standing::Unknown => "unknown",
        },
        container: lease.key.container,
        interface: lease.key.interface,
        network: lease.key.network,
        pod: lease.pod,
        host_interface: (!lease.host_if.is_empty()).then_some(lease.host_if),
        since: since.map(rfc3339),
        seconds: age.map(|age| u32::try_from(age.as_secs()).unwrap_or(u32::MAX)),
    }
}

impl Report for Leases {
    const KIND: &'static str = "Leases";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let or_dash = |text: &str| {
            if text.is_empty() {
                "-".to_owned()
            } else {
                text.to_owned()
            }
        };
        let lease = |lease: &Lease| {
            [
                lease.address.clone(),
                lease.state.to_owned(),
                or_dash(&lease.pod),
                lease.container.chars().take(13).collect(),
                lease.interface.clone(),
                lease.host_interface.clone().unwrap_or_else(|| "-".to_owned()),
                lease.seconds.map_or_else(|| "-".to_owned(), duration),
            ]
        };
        let heading = [
            "ADDRESS",
            "STATE",
            "POD",
            "CONTAINER",
            "INTERFACE",
            "HOST INTERFACE",
            "SINCE",
        ];
        output::write_table(out, heading, self.leases.iter().map(lease))?;
        for pool in &self.pools {
            let on = or_dash(&pool.interface);
            writeln!(
                out,
                "{} of {} addresses of {} on {on} are in use",
                pool.used, pool.total, pool.subnet
            )?;
        }
        Ok(())
    }
}
