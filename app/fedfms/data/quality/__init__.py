"""The quality of a site's data: measured per case, checked per dataset, reported without identifiers."""
