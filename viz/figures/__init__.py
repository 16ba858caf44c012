"""One figure a file: `info(arrays)` holds the numbers, `figure(info)` draws them with plotly."""
