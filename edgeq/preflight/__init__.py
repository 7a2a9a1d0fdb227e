"""What an artefact would answer on the other CPUs of its family, and where and why that is something else."""
