// The API, to be read and tried: swagger-ui, with this server's own document and the key that the page at / keeps.

import { KEY } from "./api.js";

const bundle = /** @type {any} */ (globalThis).SwaggerUIBundle;

bundle({
  url: "/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null, // else it would ask another host
  /** @param {{headers: Record<string, string>}} request */
  requestInterceptor: (request) => {
    const key = sessionStorage.getItem(KEY);
    if (key && !request.headers.Authorization) request.headers.Authorization = `Bearer ${key}`;
    return request;
  },
});
