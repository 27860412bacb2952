//! Settings into maps.

use causeway_common::maps::Config;

use super::{Datapath, DatapathError, lock};
use crate::settings::Settings;

impl Datapath {
    /// Makes the programs follow the settings; the uplink is another matter ([`Self::ensure`]). Returns the names of the
    /// maps that had to be changed. Flows that are there stay as they are.
    pub fn apply(&self, settings: &Settings) -> Result<Vec<&'static str>, DatapathError> {
        let mut changed = Vec::new();
        {
            let _lock = lock(&self.root)?;
            if self.tables.exchange_ranges(&settings.ranges())? {
                changed.push("cwy_ranges");
            }
            let before = self.tables.config()?;
            let config = Config {
                pod_quota: settings.pod_quota,
                wire_quota: settings.outside_quota,
                timeouts: settings.timeouts(),
                ..before
            };
            if config != before {
                self.tables.set_config(&config)?;
                changed.push("cwy_cfg");
            }
        }
        if self.reserve_by(settings)? {
            changed.push("cwy_ports");
        }
        Ok(changed)
    }
}
