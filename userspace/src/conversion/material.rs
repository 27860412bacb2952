//! The documents, each read by its own kind.

use std::mem::take;

use super::{
    azure::{Cluster, Network, Subnet},
    document::{Document, Kind},
    error::InputError,
    facts::{Guard, Inputs, Named},
    rules::SecurityGroup,
};

/// What the documents say.
pub(super) struct Material {
    pub(super) cluster: Option<Cluster>,
    pub(super) network: Option<Network>,
    /// Subnets with a document of their own.
    pub(super) subnets: Vec<Subnet>,
    /// Groups that say whose they are.
    pub(super) groups: Vec<SecurityGroup>,
    /// The API server subnet's, if it is said to be.
    pub(super) api_group: Option<Guard>,
    /// The cluster's subnets', likewise.
    pub(super) cluster_group: Option<Guard>,
}

impl Material {
    /// Takes the documents out of the inputs, and adds what is wrong with them.
    pub(super) fn read(inputs: &mut Inputs, errors: &mut Vec<InputError>) -> Self {
        let mut reader = Reader { errors };
        let cluster = inputs.cluster.take().map(|document| document.one(Kind::Cluster));
        let network = inputs.network.take().map(|document| document.one(Kind::Network));
        Self {
            cluster: cluster
                .and_then(|document| reader.take(document.and_then(|document| Cluster::read(&document)))),
            network: network
                .and_then(|document| reader.take(document.and_then(|document| Network::read(&document)))),
            subnets: take(&mut inputs.subnets)
                .into_iter()
                .flat_map(|document| reader.subnets(document))
                .collect(),
            groups: take(&mut inputs.groups)
                .into_iter()
                .filter_map(|document| reader.group(document))
                .collect(),
            api_group: inputs.api_group.take().and_then(|named| reader.named(named)),
            cluster_group: inputs.cluster_group.take().and_then(|named| reader.named(named)),
        }
    }
}

/// Reads on when something is wrong, so that everything is said at once.
struct Reader<'a> {
    errors: &'a mut Vec<InputError>,
}

impl Reader<'_> {
    fn take<T>(&mut self, read: Result<T, InputError>) -> Option<T> {
        read.map_err(|error| self.errors.push(error)).ok()
    }

    fn subnets(&mut self, document: Document) -> Vec<Subnet> {
        let each = document.each(Kind::Subnet);
        let subnets = each.and_then(|each| each.iter().map(Subnet::read).collect::<Result<Vec<_>, _>>());
        self.take(subnets).unwrap_or_default()
    }

    fn group(&mut self, document: Document) -> Option<SecurityGroup> {
        let nobodys = document.fault(
            "does not say whose rules these are: give the file as --api-nsg or as --cluster-nsg instead",
        );
        let group = self.rules(document)?;
        if group.id.is_empty() {
            self.errors.push(nobodys);
            return None;
        }
        Some(group)
    }

    fn named(&mut self, named: Named) -> Option<Guard> {
        match named {
            Named::Nothing => Some(Guard::Open),
            Named::Rules(document) => self.rules(document).map(Guard::Group),
        }
    }

    fn rules(&mut self, document: Document) -> Option<SecurityGroup> {
        let group = document
            .group()
            .and_then(|document| SecurityGroup::read(&document));
        self.take(group)
    }
}
