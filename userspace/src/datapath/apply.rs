//! Settings into maps.

use causeway_common::maps::Config;

use super::{Datapath, DatapathError, HostPort, lock};
use crate::{node::Sysctls, settings::Settings};

impl Datapath {
    /// Makes the programs follow the settings; the uplink is another matter ([`Self::ensure`]). Returns the names of the
    /// maps that had to be changed. Flows that are there stay as they are.
    pub fn apply(&self, settings: &Settings) -> Result<Vec<&'static str>, DatapathError> {
        self.apply_over(settings, &Sysctls::read())
    }

    /// As [`Self::apply`], over these settings of the kernel.
    pub fn apply_over(
        &self,
        settings: &Settings,
        sysctls: &Sysctls,
    ) -> Result<Vec<&'static str>, DatapathError> {
        let mut changed = self.apply_choice_over(settings, sysctls)?;
        if self.reserve_by(settings, sysctls)? {
            changed.push("cwy_ports");
        }
        Ok(changed)
    }

    /// As [`Self::apply`], but for ports: who they are reserved for is another question.
    pub fn apply_choice(&self, settings: &Settings) -> Result<Vec<&'static str>, DatapathError> {
        self.apply_choice_over(settings, &Sysctls::read())
    }

    /// As [`Self::apply_choice`], over these settings of the kernel.
    pub fn apply_choice_over(
        &self,
        settings: &Settings,
        sysctls: &Sysctls,
    ) -> Result<Vec<&'static str>, DatapathError> {
        let mut changed = Vec::new();
        {
            let _lock = lock(&self.root)?;
            // The backends before the range that leads to them.
            if self.tables.set_balancer(settings.api_server.as_ref())? {
                changed.push("cwy_backends");
            }
            if self.tables.of::<[u8; 4]>().exchange_ranges(&settings.ranges())? {
                changed.push("cwy_ranges");
            }
            if self.translates_ipv6()
                && self
                    .tables
                    .of::<[u8; 16]>()
                    .exchange_ranges(&settings.ranges_v6())?
            {
                changed.push("cwy_ranges6");
            }
            let before = self.tables.config()?;
            let config = Config {
                pod_quota: settings.pod_quota,
                wire_quota: settings.outside_quota,
                timeouts: settings.timeouts(sysctls),
                ..before
            };
            if config != before {
                self.tables.set_config(&config)?;
                changed.push("cwy_cfg");
            }
        }
        Ok(changed)
    }

    /// Whether exactly these ports are reserved: the settings' and those of pods.
    pub fn has_reserved(
        &self,
        settings: &Settings,
        sysctls: &Sysctls,
        of_pods: &[HostPort],
    ) -> Result<bool, DatapathError> {
        self.tables.has_ports(&settings.reserved(sysctls), of_pods)
    }
}
