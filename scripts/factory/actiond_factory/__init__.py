"""The model factory of actiond: renders training video from motion capture, trains, quantizes and exports."""
