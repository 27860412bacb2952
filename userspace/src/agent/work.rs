//! What works on the node, one piece at a time, and what it is to follow.

use causeway::{
    apiserver::Steward, config, datapath::DatapathError, reconcile::Keeper, root::Root, settings::Settings,
};

use super::state::Shared;

#[derive(Debug)]
pub(super) struct Work {
    pub(super) keeper: Keeper,
    pub(super) steward: Steward,
    /// What was chosen, with the API server at rest.
    settings: Settings,
}

impl Work {
    /// Follows the files, if they are right; else what was in force before, or was kept from the boot before.
    pub(super) fn begin(root: &Root, shared: &Shared) -> Self {
        let loaded = config::load(root);
        shared.note_reload(loaded.as_ref().map(drop).map_err(ToString::to_string));
        let mut steward = Steward::new(root);
        let settings = match loaded {
            Ok(configuration) => {
                let settings = configuration.settings.clone();
                keep(root, &settings);
                steward.follow(configuration.api_server.as_ref());
                shared.set_configuration(configuration);
                shared.note_applied();
                settings
            }
            Err(error) => {
                tracing::error!(%error, "the configuration is wrong: what was in force before stays so");
                Settings::noted(root)
            }
        };
        Self {
            keeper: Keeper::new(root, in_force(root, &settings, &steward)),
            steward,
            settings,
        }
    }

    /// Reads the files again.
    pub(super) fn reload(&mut self, root: &Root, shared: &Shared) {
        match config::load(root) {
            Ok(configuration) => {
                self.settings = configuration.settings.clone();
                keep(root, &self.settings);
                self.steward.follow(configuration.api_server.as_ref());
                shared.set_configuration(configuration);
                self.follow(root, shared);
            }
            Err(error) => {
                tracing::error!(%error, "the configuration is wrong: what was in force before stays so");
                shared.note_reload(Err(error.to_string()));
            }
        }
    }

    /// Follows what the steward says.
    pub(super) fn follow(&mut self, root: &Root, shared: &Shared) {
        let settings = in_force(root, &self.settings, &self.steward);
        note_application(shared, self.keeper.follow(settings));
    }
}

/// For a start with files that are wrong, after a boot too.
fn keep(root: &Root, settings: &Settings) {
    if let Err(error) = settings.keep(root) {
        tracing::warn!(%error, "a wrong configuration would cost what is in force now at the next boot");
    }
}

/// What the programs are to follow now, which is noted.
fn in_force(root: &Root, chosen: &Settings, steward: &Steward) -> Settings {
    let settings = Settings {
        api_server: steward.api_server().or_else(|| chosen.api_server.clone()),
        ..chosen.clone()
    };
    if let Err(error) = settings.note(root) {
        tracing::warn!(%error, "a plug-in that loads the datapath will not know the configuration");
    }
    settings
}

fn note_application(shared: &Shared, applied: Result<Vec<&'static str>, DatapathError>) {
    match applied {
        Ok(maps) => {
            if !maps.is_empty() {
                tracing::info!(?maps, "the configuration is in force");
            }
            shared.note_reload(Ok(()));
            shared.note_applied();
        }
        Err(error) => {
            tracing::error!(%error, "the configuration is not in force yet");
            shared.note_reload(Err(error.to_string()));
        }
    }
}
