"""What a site's data are like: measured per case, judged per dataset, summed up without identifiers."""
