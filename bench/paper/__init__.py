"""The published table of migrations, done again: five applications, containers and virtual machines, shaped links."""
